// The page: joins what is typed, chosen and clicked to searches, and these to what is shown.

import { Offline, Problem, search, setToken, status } from "./api.js";
import { showChips } from "./chips.js";
import { Detail } from "./detail.js";
import { count, el, oneLine, percent } from "./elements.js";
import { Attributes, showFilters } from "./filters.js";
import { Grid } from "./grid.js";
import { emptyQuery, fromAddress, isEmpty, LESS, MORE, toAddress, toRequest } from "./query.js";
import { listen, toUpload } from "./uploads.js";

const PAGE = 60; // results fetched at once
const TYPING = 120; // milliseconds without a key before a search
const AGAIN = 2_000; // milliseconds before asking a server that did not answer
const UNLIKELY = 0.05; // below this probability of a match, none is confident
const FAINT = 0.25; // a hit less probable than this share of the first is not confident

const $ = (id) => document.getElementById(id);
const attributes = new Attributes();
const kept = new Map(); // uploads by key, for the way back
let query = emptyQuery();
let next = ""; // the token of the page that follows
let asked = null; // the request that the results answer
let searching = null; // the AbortController of what is under way
let paging = false;
let typing = 0;
let waiting = 0;
let sure = ""; // what the model says of the first ten results
let revision = ""; // of the index that the footer tells of
let byKeyboard = false; // whether the focus goes to the results that come

const grid = new Grid($("grid"), {
  open: (place) => open(grid.hits[place]),
  more: (place) => addLike(grid.hits[place], MORE),
  less: (place) => addLike(grid.hits[place], LESS),
  end: () => nextPage(),
  address: (hit) => toAddress(query, hit.imageId),
});
const detail = new Detail($("detail"), {
  close: closeDetail,
  step,
  more: (hit) => addLike(hit, MORE),
  less: (hit) => addLike(hit, LESS),
});

// ---- searching

/** Search for what the query says now; whatever is under way is given up. */
async function run() {
  searching?.abort();
  clearTimeout(waiting);
  const now = toRequest(query);
  const mine = searching = new AbortController();
  next = "";
  if (!now) {
    busy(false);
    asked = null;
    grid.show([], null);
    say("");
    tell(null);
    $("welcome").hidden = false;
    return;
  }
  busy(true);
  try {
    const answer = await search({ ...now.request, pageSize: PAGE }, now.images, mine.signal);
    if (mine.signal.aborted) return;
    tell(null);
    asked = now;
    next = answer.nextPageToken;
    scrollTo(0, 0);
    grid.show(answer.hits, cutOf(answer));
    requestAnimationFrame(() => setTimeout(markPainted));
    attributes.fromHits(answer.hits);
    if (!$("filters").hidden) refreshFilters();
    $("welcome").hidden = true;
    sure = answer.matchProbability === undefined ? "" : ` · ${percent(answer.matchProbability)} that the one you mean is among the first ten`;
    say(resultCount());
    busy(false);
    if (answer.indexRevision !== revision) status().then(showIndex).catch(() => {});
    if (byKeyboard && answer.hits.length) grid.focus(0);
    byKeyboard = false;
    if (detail.id !== null) showOpen(detail.id); // which was opened by its address, before its neighbours were known
  } catch (error) {
    if (error.name !== "AbortError" && mine === searching) refused(error, run);
  }
}

/** Note when results were on the screen, for who measures it. */
function markPainted() {
  performance.clearMarks("painted");
  performance.mark("painted");
}

async function nextPage() {
  if (!next || paging || !asked) return;
  paging = true;
  const mine = searching;
  try {
    const page = { ...asked.request, pageSize: PAGE, pageToken: next };
    const answer = await search(page, asked.images, mine.signal);
    if (mine !== searching) return;
    next = answer.nextPageToken;
    attributes.fromHits(answer.hits);
    grid.add(answer.hits);
    say(resultCount());
  } catch (error) {
    if (error.name === "AbortError" || mine !== searching) return;
    next = "";
    refused(error, run);
  } finally {
    paging = false;
  }
  grid.render();
}

/** Where confident matches end, where the model says how sure it is. */
function cutOf({ hits, matchProbability }) {
  if (matchProbability === undefined || !hits.length) return null;
  if (matchProbability < UNLIKELY) return { after: 0, text: "Perhaps nothing here is what you mean" };
  const least = FAINT * hits[0].probability;
  const after = hits.findIndex((hit) => !(hit.probability >= least));
  return after > 0 ? { after, text: "Less certain from here on" } : null;
}

const resultCount = () => (grid.hits.length ? `${count(grid.hits.length)}${next ? " and more" : ""} pictures${sure}` : "Nothing found");

// ---- telling

const busy = (on) => { $("progress").hidden = !on; $("grid").setAttribute("aria-busy", on); };
const say = (text) => {
  if (text === "Nothing found") tell("Nothing found", query.filters.size || query.custom ? "No picture passes the filters." : "The index holds no picture.");
  $("count").textContent = text;
};

/** Show a notice, with what to do about it, or none. */
function tell(title, detailed = "", ...actions) {
  $("notice").hidden = title === null;
  $("notice").replaceChildren(...(title === null ? [] : [el("strong", {}, title), el("span", {}, detailed), ...actions]));
}

function refused(error, again) {
  busy(false);
  $("welcome").hidden = true;
  const custom = $("custom-error");
  if (custom) custom.textContent = "";
  if (error instanceof Offline) {
    tell("The server does not answer", "What was found stays here; the search goes on as soon as it is back.");
    waiting = setTimeout(() => wait(again), AGAIN);
  } else if (error instanceof Problem && error.passes) {
    const loading = error.reason === "NOT_READY";
    tell(loading ? "The model is being loaded" : "The server is busy", "The search goes on by itself.");
    waiting = setTimeout(again, 1_000 * Math.max(1, error.retryAfter));
  } else if (error instanceof Problem && error.status === 401) {
    askForToken();
  } else if (error instanceof Problem && error.reason === "PAGE_TOKEN_EXPIRED") {
    tell("The index has changed", "These results are from before.", button("Search again", run));
  } else {
    const field = error.violations?.[0]?.field;
    if (field === "filter" && custom) custom.textContent = error.violations[0].description;
    grid.show([], null);
    $("count").textContent = "";
    tell("This cannot be searched for", oneLine(error.violations?.[0]?.description ?? error.message, 500), button("Begin again", beginAgain));
  }
}

/** Ask until the server answers again. */
async function wait(again) {
  try {
    showIndex(await status());
  } catch (error) {
    if (error instanceof Offline) {
      waiting = setTimeout(() => wait(again), AGAIN);
      return;
    }
  }
  again();
}

function askForToken() {
  const token = el("input", { type: "password", autocomplete: "off", "aria-label": "Token" });
  const form = el("form", {}, token, el("button", {}, "Use it"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setToken(token.value.trim());
    begin();
  });
  tell("This server asks for a token", "It stays in this tab until you close it.", form);
  token.focus();
}

const button = (label, click) => el("button", { type: "button", click }, label);

function showIndex(found) {
  revision = found.revision;
  attributes.fromIndex(found.attributes ?? []);
  $("about").replaceChildren(
    `${count(found.imageCount)} pictures · model ${oneLine(found.modelName, 60)} `,
    el("code", { title: `model revision ${found.modelRevision}` }, found.modelRevision.slice(0, 12)),
    " · index ",
    el("code", { title: "index revision" }, found.revision));
}

// ---- changing the query

/** Take over a change of the query: show it, search, and note it in the address; typing on is no step to go back to. */
function changed({ typing: typed = false } = {}) {
  const uploads = query.parts.filter((part) => part.upload).map((part) => ({ key: part.upload.key, weight: part.weight }));
  const state = { uploads, typing: typed };
  const address = toAddress(query);
  const same = address === location.pathname + location.search && JSON.stringify(uploads) === JSON.stringify(history.state?.uploads ?? []);
  if (same || (typed && history.state?.typing)) history.replaceState(state, "", address);
  else history.pushState(state, "", address);
  showQuery();
  run();
}

function showQuery() {
  const text = $("text");
  if (text.value !== query.text) text.value = query.text;
  $("clear").hidden = isEmpty(query);
  showChips($("chips"), query, () => changed(), (name) => {
    if (name === null) query.custom = "";
    else query.filters.delete(name);
    refreshFilters();
    changed();
  });
  const filters = query.filters.size + (query.custom.trim() ? 1 : 0);
  $("filter-count").textContent = filters;
  $("filter-count").hidden = !filters;
  document.title = query.text.trim() ? `${oneLine(query.text, 60)} · Image search` : "Image search";
}

const refreshFilters = () => showFilters($("filters"), attributes, query, () => changed());

function addLike(hit, weight) {
  const place = query.parts.findIndex((part) => part.id === hit.imageId);
  if (place >= 0) query.parts[place].weight = weight;
  else query.parts.push({ id: hit.imageId, weight, caption: hit.captions?.[0] });
  byKeyboard = document.activeElement.matches("#grid :focus-visible, dialog:focus, dialog :focus-visible");
  detail.close();
  changed();
}

async function useUpload(file) {
  const upload = await toUpload(file);
  upload.key = crypto.randomUUID?.() ?? String(performance.now());
  kept.set(upload.key, upload);
  query.parts = [...query.parts.filter((part) => !part.upload), { upload, weight: MORE }];
  detail.close();
  changed();
}

function beginAgain() {
  query = emptyQuery();
  refreshFilters();
  changed();
  $("text").focus();
}

// ---- one image

function open(hit) {
  history.pushState({ ...history.state, detail: true }, "", toAddress(query, hit.imageId));
  showOpen(hit.imageId);
}

function showOpen(id) {
  const place = grid.hits.findIndex((hit) => hit.imageId === id);
  if (place >= 0) detail.show(grid.hits[place], place, grid.hits.length);
  else detail.load(id).catch((error) => { if (!grid.hits.length) refused(error, begin); });
}

function closeDetail() {
  const place = grid.hits.findIndex((hit) => hit.imageId === detail.id);
  if (history.state?.detail) history.back();
  else history.replaceState(history.state, "", toAddress(query));
  detail.close();
  if (place >= 0) grid.focus(place);
}

function step(by) {
  const place = grid.hits.findIndex((hit) => hit.imageId === detail.id);
  const hit = place < 0 ? null : grid.hits[place + by];
  if (!hit) return;
  history.replaceState(history.state, "", toAddress(query, hit.imageId));
  showOpen(hit.imageId);
}

// ---- beginning, and going back

/** Show what the address says. */
function fromHistory() {
  const { query: found, open: id } = fromAddress(location.search);
  for (const { key, weight } of history.state?.uploads ?? []) {
    if (kept.has(key)) found.parts.push({ upload: kept.get(key), weight });
  }
  const same = toAddress(found) === toAddress(query) && found.parts.length === query.parts.length;
  if (!same) {
    query = found;
    refreshFilters();
    showQuery();
    run();
  }
  if (id === null) detail.close();
  else if (detail.id !== id) showOpen(id);
}

function begin() {
  const { query: found, open: id } = fromAddress(location.search);
  query = found;
  showQuery();
  tell(null);
  const first = status().then((found) => { showIndex(found); refreshFilters(); });
  if (isEmpty(query)) first.catch((error) => refused(error, begin));
  else { first.catch(() => {}); run(); }
  if (id !== null) showOpen(id);
}

$("text").addEventListener("input", () => {
  query.text = $("text").value;
  clearTimeout(typing);
  typing = setTimeout(() => changed({ typing: true }), TYPING);
});
$("text").addEventListener("change", () => history.replaceState({ ...history.state, typing: false }, ""));
$("text").addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && grid.hits.length) { event.preventDefault(); grid.focus(0); }
  if (event.key === "Escape" && query.text) { query.text = ""; changed(); }
});
$("search").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  query.text = $("text").value;
  changed();
});
$("clear").addEventListener("click", beginAgain);
document.querySelector(".brand").addEventListener("click", (event) => { event.preventDefault(); beginAgain(); });
$("pick").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  $("file").value = "";
  if (file) useUpload(file);
});
$("filter-toggle").addEventListener("click", () => {
  const shown = $("filters").hidden;
  if (shown) refreshFilters();
  $("filters").hidden = !shown;
  $("filter-toggle").setAttribute("aria-expanded", shown);
});
$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* storage may be blocked */ }
});
addEventListener("keydown", (event) => {
  const writing = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), textarea");
  if (event.key === "/" && !writing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    if (detail.id !== null) closeDetail();
    $("text").focus();
    $("text").select();
  } else if (event.key === "Escape" && !writing && detail.id === null) {
    $("text").focus();
  }
});
addEventListener("popstate", fromHistory);
addEventListener("online", () => { if (waiting) { clearTimeout(waiting); wait(run); } });
listen($("drop"), useUpload);
begin();
