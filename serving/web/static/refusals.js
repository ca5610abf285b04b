// What the page does about a refusal: tells it, waits and asks again where that helps, asks for a token. Knows no query.

import { Offline, Problem, setToken, status } from "./api.js";
import { byId, el, oneLine } from "./elements.js";
import { busy, button, tell } from "./notice.js";

const AGAIN = 2_000; // milliseconds before asking a server that did not answer

/** `page` has `run()`, `begin()`, `beginAgain()`, `clear()` and `showIndex(index)`. */
export class Refusals {
  #page;
  #waiting = 0;

  constructor(page) {
    this.#page = page;
    addEventListener("online", () => {
      if (!this.#waiting) return;
      this.stopWaiting();
      this.#wait(page.run);
    });
  }

  /** Whatever was to be asked again is not. */
  stopWaiting() {
    clearTimeout(this.#waiting);
  }

  /** Tell of an error; `again` is what was tried. */
  tell(error, again) {
    busy(false);
    byId("welcome").hidden = true;
    const custom = byId("custom-error");
    if (custom) custom.textContent = "";
    if (error instanceof Offline) {
      tell("The server does not answer", "What was found stays here; the search goes on as soon as it is back.");
      this.#waiting = setTimeout(() => this.#wait(again), AGAIN);
    } else if (error instanceof Problem && error.passes) {
      const loading = error.reason === "NOT_READY";
      tell(loading ? "The model is being loaded" : "The server is busy", "The search goes on by itself.");
      this.#waiting = setTimeout(again, 1_000 * Math.max(1, error.retryAfter));
    } else if (error instanceof Problem && error.status === 401) {
      this.#askForToken();
    } else if (error instanceof Problem && error.reason === "PAGE_TOKEN_EXPIRED") {
      tell("The index has changed", "These results are from before.", button("Search again", this.#page.run));
    } else {
      const violation = error.violations?.[0];
      if (violation?.field === "filter" && custom) custom.textContent = violation.description;
      this.#page.clear();
      tell("This cannot be searched for", oneLine(violation?.description ?? error.message, 500), button("Begin again", this.#page.beginAgain));
    }
  }

  /** Ask until the server answers again. */
  async #wait(again) {
    try {
      this.#page.showIndex(await status());
    } catch (error) {
      if (error instanceof Offline) {
        this.#waiting = setTimeout(() => this.#wait(again), AGAIN);
        return;
      }
    }
    again();
  }

  #askForToken() {
    const token = el("input", { type: "password", autocomplete: "off", "aria-label": "Token" });
    const form = el("form", {}, token, el("button", {}, "Use it"));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      setToken(token.value.trim());
      this.#page.begin();
    });
    tell("This server asks for a token", "It stays in this tab until you close it.", form);
    token.focus();
  }
}
