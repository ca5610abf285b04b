// The page: joins what is typed, chosen and clicked to searches, and these to what is shown.

import { status } from "./api.js";
import { showChips } from "./chips.js";
import { listenToControls } from "./controls.js";
import { Detail } from "./detail.js";
import { byId, count, el, oneLine } from "./elements.js";
import { Attributes, showFilters } from "./filters.js";
import { Grid } from "./grid.js";
import { tell } from "./notice.js";
import { emptyQuery, fromAddress, isEmpty, LESS, MORE, toAddress } from "./query.js";
import { Refusals } from "./refusals.js";
import { Searches } from "./searches.js";
import { listen, toUpload } from "./uploads.js";

const attributes = new Attributes();
const kept = new Map(); // uploads by key, for the way back
let query = emptyQuery();
let revision = ""; // of the index that the footer tells of
let byKeyboard = false; // whether the focus goes to the results that come

const grid = new Grid(byId("grid"), {
  open: (place) => open(grid.hits[place]),
  more: (place) => addLike(grid.hits[place], MORE),
  less: (place) => addLike(grid.hits[place], LESS),
  end: () => searches.nextPage(),
  address: (hit) => toAddress(query, hit.imageId),
});
const detail = new Detail(byId("detail"), {
  close: closeDetail,
  step,
  more: (hit) => addLike(hit, MORE),
  less: (hit) => addLike(hit, LESS),
});
const searches = new Searches(grid, attributes, {
  begins: () => refusals.stopWaiting(),
  found,
  refused: (error) => refusals.tell(error, run),
});
const refusals = new Refusals({ run, begin, beginAgain, showIndex, clear: () => searches.clear() });

// ---- searching

function run() {
  searches.run(query);
}

/** What else the page does when a first page of results is shown. */
function found(answer) {
  if (!byId("filters").hidden) refreshFilters();
  if (answer.indexRevision !== revision) status().then(showIndex).catch(() => {});
  if (byKeyboard && answer.hits.length) grid.focus(0);
  byKeyboard = false;
  if (detail.id !== null) showOpen(detail.id); // which was opened by its address, before its neighbours were known
}

function showIndex(found) {
  revision = found.revision;
  attributes.fromIndex(found.attributes ?? []);
  byId("about").replaceChildren(
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
  const text = byId("text");
  if (text.value !== query.text) text.value = query.text;
  byId("clear").hidden = isEmpty(query);
  showChips(byId("chips"), query, () => changed(), (name) => {
    if (name === null) query.custom = "";
    else query.filters.delete(name);
    refreshFilters();
    changed();
  });
  const filters = query.filters.size + (query.custom.trim() ? 1 : 0);
  byId("filter-count").textContent = filters;
  byId("filter-count").hidden = !filters;
  document.title = query.text.trim() ? `${oneLine(query.text, 60)} · Image search` : "Image search";
}

const refreshFilters = () => showFilters(byId("filters"), attributes, query, () => changed());

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
  byId("text").focus();
}

// ---- one image

function open(hit) {
  history.pushState({ ...history.state, detail: true }, "", toAddress(query, hit.imageId));
  showOpen(hit.imageId);
}

function showOpen(id) {
  const place = grid.hits.findIndex((hit) => hit.imageId === id);
  if (place >= 0) detail.show(grid.hits[place], place, grid.hits.length);
  else detail.load(id).catch((error) => { if (!grid.hits.length) refusals.tell(error, begin); });
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
  if (isEmpty(query)) first.catch((error) => refusals.tell(error, begin));
  else { first.catch(() => {}); run(); }
  if (id !== null) showOpen(id);
}

listenToControls({
  typed: (text) => { query.text = text; },
  paused: () => changed({ typing: true }),
  settled: () => history.replaceState({ ...history.state, typing: false }, ""),
  entered: (text) => { query.text = text; changed(); },
  escaped: () => { if (query.text) { query.text = ""; changed(); } },
  beginAgain,
  picked: useUpload,
  filters: refreshFilters,
  down: () => { if (grid.hits.length) grid.focus(0); return grid.hits.length > 0; },
  toField: () => { if (detail.id !== null) closeDetail(); },
});
addEventListener("popstate", fromHistory);
listen(byId("drop"), useUpload);
begin();
