// What is searched for: as an address that can be shared, and as the request to the gateway. Knows no element.

export const MORE = 1;
export const LESS = -0.5;
const KINDS = { s: "string", t: "strings", b: "bool", n: "number", d: "timestamp" };
const LETTERS = Object.fromEntries(Object.entries(KINDS).map(([letter, kind]) => [kind, letter]));

/**
 * Parts are `{id, weight}` for indexed images, and `{upload, weight}` for the user's own. Filters are by attribute name:
 * `{kind, values}` for texts and lists, `{kind, value}` for truth values, `{kind, from, to}` for numbers and times.
 */
export const emptyQuery = () => ({ text: "", textWeight: 1, parts: [], filters: new Map(), custom: "" });

export const isEmpty = (query) => !query.text.trim() && !query.parts.length;

/** The address of a query; pictures of the user's own stay out of it. */
export function toAddress(query, open = null) {
  const found = new URLSearchParams();
  if (query.text) found.set("q", query.text);
  if (query.textWeight !== 1) found.set("qw", query.textWeight);
  for (const part of query.parts) if (part.id !== undefined) found.append("like", `${part.weight}~${part.id}`);
  for (const [name, filter] of query.filters) {
    for (const value of filter.values ?? [filter.value ?? `${filter.from}..${filter.to}`]) {
      found.append("f", `${LETTERS[filter.kind]}.${encodeURIComponent(name)}=${value}`);
    }
  }
  if (query.custom) found.set("filter", query.custom);
  if (open !== null) found.set("image", open);
  const text = found.toString();
  return text ? `/?${text}` : "/";
}

/** The query of an address and the image that is open, or null; what makes no sense is left out. */
export function fromAddress(text) {
  const given = new URLSearchParams(text);
  const query = emptyQuery();
  query.text = (given.get("q") ?? "").slice(0, 10_000);
  query.textWeight = weight(given.get("qw"), 1);
  for (const like of given.getAll("like").slice(0, 15)) {
    const [, number, id] = /^([^~]*)~([^]+)$/.exec(like) ?? [];
    if (id) query.parts.push({ id, weight: weight(number, MORE) });
  }
  for (const filter of given.getAll("f")) addFilter(query.filters, filter);
  query.custom = given.get("filter") ?? "";
  return { query, open: given.get("image") };
}

const weight = (text, other) => {
  const number = Number(text);
  return text !== null && text !== "" && number && Math.abs(number) <= 10 ? number : other;
};

function addFilter(filters, text) {
  const [, letter, quoted, value] = /^([stbnd])\.([^=]+)=([^]*)$/.exec(text) ?? [];
  if (!letter) return;
  let name;
  try { name = decodeURIComponent(quoted); } catch { return; }
  const kind = KINDS[letter];
  if (kind === "string" || kind === "strings") {
    const held = filters.get(name) ?? { kind, values: [] };
    filters.set(name, { kind, values: [...held.values, value] });
  } else if (kind === "bool") {
    filters.set(name, { kind, value: value === "true" });
  } else {
    const [from, to = ""] = value.split("..");
    filters.set(name, { kind, from, to });
  }
}

/** The filter in the syntax of `SearchRequest.filter`. */
export function filterText(query) {
  const conditions = [...query.filters].map(([name, filter]) => condition(attribute(name), filter)).filter(Boolean);
  if (query.custom.trim()) conditions.push(`(${query.custom.trim()})`);
  return conditions.join(" AND ");
}

const attribute = (name) => (/^[A-Za-z_][\w.-]*$/.test(name) && !/^(id|and|or|not|in)$/i.test(name) ? name : JSON.stringify(name));

function condition(name, filter) {
  if (filter.kind === "string") return `${name} IN (${filter.values.map((value) => JSON.stringify(value)).join(", ")})`;
  if (filter.kind === "strings") return `(${filter.values.map((value) => `${name}:${JSON.stringify(value)}`).join(" OR ")})`;
  if (filter.kind === "bool") return `${name} = ${filter.value}`;
  const value = filter.kind === "timestamp"
    ? (day, end) => `timestamp("${day}T${end ? "23:59:59" : "00:00:00"}Z")`
    : (number) => `${Number(number)}`;
  const ends = [filter.from && `${name} >= ${value(filter.from)}`, filter.to && `${name} <= ${value(filter.to, true)}`];
  return ends.filter(Boolean).join(" AND ");
}

/** `{request, images}` for the gateway, or null when nothing is searched for. */
export function toRequest(query) {
  const parts = [];
  const images = [];
  if (query.text.trim()) parts.push({ query: { text: query.text }, weight: query.textWeight });
  for (const part of query.parts) {
    if (part.upload) images.push(part.upload.blob);
    parts.push({ query: part.upload ? {} : { imageId: part.id }, weight: part.weight });
  }
  if (!parts.length) return null;
  const alone = parts.length === 1 && parts[0].weight > 0;
  const request = { query: alone ? parts[0].query : { composition: { parts } } };
  const filter = filterText(query);
  if (filter) request.filter = filter;
  return { request, images };
}
