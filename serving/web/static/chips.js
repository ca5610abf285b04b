// The parts of the query as chips with weights, and what is filtered by. Knows no request.

import { imagePath, showPicture } from "./api.js";
import { el, icon, ICONS, oneLine } from "./elements.js";
import { LESS, MORE } from "./query.js";

/** Shows the parts of `query` in `list`; `changed()` is called when one was changed, `dropFilter(name)` to drop one. */
export function showChips(list, query, changed, dropFilter) {
  const chips = [];
  if (query.text.trim() && query.parts.length) chips.push(textChip(query, changed));
  query.parts.forEach((part, place) => chips.push(partChip(query, part, place, changed)));
  for (const [name, filter] of query.filters) chips.push(filterChip(name, filter, dropFilter));
  if (query.custom.trim()) chips.push(filterChip(null, { values: [query.custom] }, dropFilter));
  list.replaceChildren(...chips);
  list.hidden = !chips.length;
}

function textChip(query, changed) {
  const shown = oneLine(query.text, 30);
  return el("li", { className: "chip" },
    el("span", {}, `“${shown}”`),
    slider(`Weight of “${shown}”`, Math.abs(query.textWeight), (value) => { query.textWeight = value; changed(); }));
}

function partChip(query, part, place, changed) {
  const less = part.weight < 0;
  const what = less ? "Less like" : "More like";
  const name = oneLine(part.upload ? part.upload.name : part.caption || part.id, 40);
  const picture = el("img", { alt: "", width: 32, height: 32 });
  picture.addEventListener("error", () => picture.classList.add("missing"));
  if (part.upload) picture.src = part.upload.address;
  else showPicture(picture, `${imagePath(part.id)}/thumbnail`);
  const turn = () => { part.weight = less ? MORE : LESS; changed(); };
  return el("li", { className: less ? "chip less" : "chip more" },
    picture,
    el("button", { type: "button", className: "turn", title: `${what}: ${name}`, "aria-label": `${what} ${name}; turn round`, click: turn }, what),
    slider(`Weight of ${name}`, Math.abs(part.weight), (value) => { part.weight = less ? -value : value; changed(); }),
    remove(`Remove ${what.toLowerCase()} ${name}`, () => { query.parts.splice(place, 1); changed(); }));
}

function filterChip(name, filter, dropFilter) {
  const told = filter.values?.join(" or ") ?? (filter.value === undefined ? range(filter) : filter.value ? "yes" : "no");
  const shown = oneLine(name === null ? told : `${name}: ${told}`, 60);
  return el("li", { className: "chip filter" }, el("span", {}, shown), remove(`Remove the filter ${shown}`, () => dropFilter(name)));
}

const range = ({ from, to }) => (from && to ? `${from} to ${to}` : from ? `from ${from}` : `to ${to}`);

function slider(label, value, set) {
  const told = el("output", {}, `× ${value}`);
  const input = el("input", { type: "range", min: 0.1, max: 2, step: 0.1, "aria-label": label });
  input.value = value;
  input.addEventListener("input", () => { told.textContent = `× ${input.value}`; });
  input.addEventListener("change", () => set(Number(input.value)));
  return el("span", { className: "weight" }, input, told);
}

const remove = (label, click) => el("button", { type: "button", className: "icon", "aria-label": label, title: label, click }, icon(ICONS.cross));
