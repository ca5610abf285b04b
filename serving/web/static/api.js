// Calls the gateway and tells its refusals apart; knows no element.

const TOKEN = "token";

/** A refusal of the server, with the fields of its problem+json. */
export class Problem extends Error {
  constructor(status, body, headers) {
    super(body.detail || `The server answered with status ${status}.`);
    this.status = status;
    this.reason = body.reason || "";
    this.violations = body.violations || [];
    this.retryAfter = body.retryAfterSeconds ?? (Number(headers.get("Retry-After")) || 0);
  }

  /** Whether the same request may succeed a little later. */
  get passes() {
    return this.status === 503 || this.status === 429 || this.status === 504;
  }
}

/** No answer: the server is stopped, or the network is down. */
export class Offline extends Error {}

export const hasToken = () => Boolean(sessionStorage.getItem(TOKEN));
export const setToken = (token) => sessionStorage.setItem(TOKEN, token);

async function call(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Offline("The server does not answer.");
  }
  if (response.ok) return response;
  let body = {};
  try { body = await response.json(); } catch { /* a proxy's own page */ }
  throw new Problem(response.status, body, response.headers);
}

/** The answer to a SearchRequest as JSON; `images` stand for its queries without an input. */
export async function search(request, images, signal) {
  let body = JSON.stringify(request);
  const headers = {};
  if (images.length) {
    const form = new FormData();
    form.append("request", body);
    for (const image of images) form.append("image", image, "image");
    body = form;
  } else {
    headers["Content-Type"] = "application/json";
  }
  const response = await call("/v1/search?pictures=true", { method: "POST", body, headers, signal });
  return response.json();
}

export const status = async (signal) => (await (await call("/v1/status", { signal })).json()).index;

export const imagePath = (id) => `/v1/images/${encodeURIComponent(id)}`;
export const image = async (id) => (await (await call(imagePath(id))).json()).image;

/** Show a picture of the gateway; with a token it is fetched, since an address cannot carry one. */
export async function showPicture(img, path) {
  img.dataset.path = path;
  if (!hasToken()) {
    img.src = path;
    return;
  }
  try {
    const blob = await (await call(path)).blob();
    if (img.dataset.path !== path) return; // it was given another picture meanwhile
    const address = URL.createObjectURL(blob);
    const release = () => URL.revokeObjectURL(address);
    img.addEventListener("load", release, { once: true });
    img.src = address;
  } catch {
    img.dispatchEvent(new Event("error"));
  }
}
