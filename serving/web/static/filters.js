// The panel with the filters that an index offers, by its attributes or by those of the hits so far. Knows no request.

import { el, oneLine } from "./elements.js";

const SHOWN = 12; // values of one attribute
const FEW = 8; // values that may all differ
const LONGEST = 60; // characters of a value to choose
const MOST = 2_000; // hits whose attributes are looked at

/** What attributes there are: `{name, kind, values}` each. */
export class Attributes {
  #found = new Map();
  #images = new Set(); // the ids of hits that were looked at

  /** Take those of GetIndex. */
  fromIndex(summaries) {
    for (const { name, kind, frequentValues = [] } of summaries) {
      const held = this.#found.get(name);
      this.#found.set(name, { name, kind, values: frequentValues, told: true, seen: held?.seen ?? new Map(), images: held?.images ?? 0 });
    }
  }

  /** Take what the attributes of hits tell: their values, where the index tells none, and whether these repeat. */
  fromHits(hits) {
    for (const hit of hits) {
      if (this.#images.has(hit.imageId) || this.#images.size >= MOST) continue;
      this.#images.add(hit.imageId);
      for (const [name, message] of Object.entries(hit.attributes ?? {})) {
        const [kind, value] = valueOf(message);
        const held = this.#found.get(name) ?? { name, kind, values: [], seen: new Map(), images: 0 };
        if (held.kind !== kind) continue;
        held.images += 1;
        for (const text of kind === "strings" ? value : kind === "string" ? [value] : []) {
          held.seen.set(text, (held.seen.get(text) ?? 0) + 1);
        }
        if (!held.told) held.values = [...held.seen].sort((a, b) => b[1] - a[1]).map(([text]) => text);
        this.#found.set(name, held);
      }
    }
  }

  /** Those worth choosing by: not one value for all, and not another for each. */
  get useful() {
    return [...this.#found.values()].filter(({ kind, values, images, seen }) => {
      if (kind !== "string" && kind !== "strings") return true;
      return values.filter((value) => value.length <= LONGEST).length > 1 && seen.size <= Math.max(FEW, images / 2);
    });
  }
}

/** `[kind, value]` of an AttributeValue as JSON. */
export function valueOf(message) {
  if ("stringValue" in message) return ["string", message.stringValue];
  if ("intValue" in message) return ["number", message.intValue];
  if ("doubleValue" in message) return ["number", message.doubleValue];
  if ("boolValue" in message) return ["bool", message.boolValue];
  if ("timestampValue" in message) return ["timestamp", message.timestampValue];
  return ["strings", message.stringListValue?.values ?? []];
}

/** Fills `panel` for `query`; `changed()` is called when a filter was. */
export function showFilters(panel, attributes, query, changed) {
  const groups = attributes.useful.map((attribute) => group(attribute, query.filters, changed));
  panel.replaceChildren(...groups, custom(query, changed));
}

function group({ name, kind, values }, filters, changed) {
  const set = (filter) => {
    if (filter) filters.set(name, filter);
    else filters.delete(name);
    changed();
  };
  const held = filters.get(name)?.kind === kind ? filters.get(name) : null;
  const controls = kind === "string" || kind === "strings" ? choices(name, kind, values, held, set)
    : kind === "bool" ? truth(name, held, set)
      : ends(name, kind, held, set);
  return el("fieldset", {}, el("legend", {}, oneLine(name, 40)), ...controls);
}

function choices(name, kind, values, held, set) {
  const chosen = new Set(held?.values);
  const shown = [...new Set([...chosen, ...values.filter((value) => value.length <= LONGEST).slice(0, SHOWN)])];
  return shown.map((value) => {
    const box = el("input", { type: "checkbox", checked: chosen.has(value) });
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(value);
      else chosen.delete(value);
      set(chosen.size ? { kind, values: [...chosen] } : null);
    });
    return el("label", { className: "pill" }, box, el("span", {}, oneLine(value, LONGEST)));
  });
}

function truth(name, held, set) {
  return [["any", null], ["yes", true], ["no", false]].map(([label, value]) => {
    const box = el("input", { type: "radio", name: `truth-${name}`, checked: (held?.value ?? null) === value });
    box.addEventListener("change", () => set(value === null ? null : { kind: "bool", value }));
    return el("label", { className: "pill" }, box, el("span", {}, label));
  });
}

function ends(name, kind, held, set) {
  const type = kind === "timestamp" ? "date" : "number";
  const from = el("input", { type, step: "any", value: held?.from ?? "", "aria-label": `${name} from`, placeholder: "from" });
  const to = el("input", { type, step: "any", value: held?.to ?? "", "aria-label": `${name} to`, placeholder: "to" });
  const change = () => set(from.value || to.value ? { kind, from: from.value, to: to.value } : null);
  from.addEventListener("change", change);
  to.addEventListener("change", change);
  return [from, "–", to];
}

function custom(query, changed) {
  const input = el("input", { type: "text", id: "custom-filter", value: query.custom, placeholder: 'kind = "photo" AND year >= 2010', spellcheck: false, "aria-describedby": "custom-error" });
  input.addEventListener("change", () => { query.custom = input.value; changed(); });
  return el("div", { className: "custom" }, el("label", { htmlFor: "custom-filter" }, "In your own words"), input, el("span", { id: "custom-error", className: "bad" }));
}
