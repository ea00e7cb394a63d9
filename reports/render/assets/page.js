"use strict";
/* Page of a report: theme, terms, sortable tables, arms and layers to hide. Text of data enters as text only. */
const lossscope = (() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("page-data").textContent);
  const hidden = { arm: new Set(), layer: new Set() };
  const listeners = [];

  function el(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
  }

  const every = (selector, within = document) => Array.from(within.querySelectorAll(selector));
  const hue = (arm) => `hue-${arm % data.hues}`;
  const swatch = (arm) => el("span", { className: `swatch ${hue(arm)}` });

  /* Theme: that of the system, unless the reader chose another. */
  const THEMES = ["auto", "light", "dark"];
  const stored = (value) => {
    try {
      if (value !== undefined) localStorage.setItem("lossscope-theme", value);
      return localStorage.getItem("lossscope-theme");
    } catch {
      return null; // a browser may refuse storage to a file
    }
  };

  function themeButton() {
    const button = el("button", { className: "tool theme", type: "button" });
    const set = (theme) => {
      if (theme === "auto") delete root.dataset.theme;
      else root.dataset.theme = theme;
      button.textContent = `Theme: ${theme}`;
      changed("theme");
    };
    button.addEventListener("click", () => {
      const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "auto") + 1) % THEMES.length];
      stored(next);
      set(next);
    });
    const before = stored();
    set(THEMES.includes(before) ? before : "auto");
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => changed("theme"));
    return button;
  }

  /* Explanations: on hover and on focus, closed by Escape. */
  const tip = el("div", { className: "tip", id: "tip", role: "tooltip", hidden: true });
  let explained = null;

  function explain(target) {
    if (explained) explained.removeAttribute("aria-describedby");
    explained = target;
    tip.hidden = target === null;
    if (target === null) return;
    tip.textContent = target.dataset.tip;
    target.setAttribute("aria-describedby", "tip");
    const at = target.getBoundingClientRect();
    const left = Math.min(at.left, window.innerWidth - tip.offsetWidth - 8);
    const above = at.top - tip.offsetHeight - 6;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 8 ? above : at.bottom + 6}px`;
  }

  function watchTips() {
    const target = (event) => (event.target instanceof Element ? event.target.closest("[data-tip]") : null);
    document.body.append(tip);
    document.addEventListener("mouseover", (event) => {
      const found = target(event);
      if (found !== explained) explain(found ?? document.activeElement?.closest?.("[data-tip]:focus-visible") ?? null);
    });
    document.addEventListener("focusin", (event) => explain(target(event)));
    document.addEventListener("focusout", () => explain(null));
    document.addEventListener("keydown", (event) => event.key === "Escape" && explain(null));
    window.addEventListener("scroll", () => explained?.matches(":hover, :focus") || explain(null), { passive: true });
  }

  /* Terms: the first occurrence in each block of prose is marked. */
  function markTerms() {
    const meanings = new Map();
    for (const name of every(".terms dt")) {
      for (const word of name.textContent.split(", ")) meanings.set(word.toLowerCase(), name.nextElementSibling.textContent);
    }
    if (!meanings.size) return;
    const escaped = (word) => word.replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
    const words = Array.from(meanings.keys()).sort((a, b) => b.length - a.length).map(escaped);
    const letters = "[\\p{L}\\p{N}_]";
    const term = new RegExp(`(?<!${letters})(${words.join("|")})(?:s|es)?(?!${letters})`, "giu");
    for (const block of every(".prose")) {
      const seen = new Set();
      const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
      const nodes = [];
      while (walker.nextNode()) nodes.push(walker.currentNode);
      for (const node of nodes) {
        if (!node.parentElement.closest("a, button, .severity, .outcome, .source")) markIn(node, term, meanings, seen);
      }
    }
  }

  function markIn(node, term, meanings, seen) {
    const text = node.textContent;
    const parts = [];
    let done = 0;
    for (const match of text.matchAll(term)) {
      const key = match[1].toLowerCase();
      if (seen.has(key)) continue;
      seen.add(key);
      parts.push(text.slice(done, match.index));
      parts.push(el("abbr", { className: "term", tabIndex: 0, "data-tip": meanings.get(key) }, match[0]));
      done = match.index + match[0].length;
    }
    if (parts.length) node.replaceWith(...parts, text.slice(done));
  }

  /* Tables: a click on a head sorts upwards, downwards, and as it was. */
  function sortable(table) {
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    for (const [place, head] of Array.from(table.tHead.rows[0].cells).entries()) {
      if (!head.textContent) continue;
      const button = el("button", { type: "button" }, ...head.childNodes);
      if (head.title) button.dataset.tip = head.title;
      head.removeAttribute("title");
      head.setAttribute("aria-sort", "none");
      head.append(button);
      const words = head.classList.contains("words");
      button.addEventListener("click", () => {
        const order = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort ?? "none"];
        for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", order);
        body.append(...sorted(rows, place, words, order));
      });
    }
  }

  const collator = new Intl.Collator("en", { numeric: true });

  function sorted(rows, place, words, order) {
    if (order === "none") return rows;
    const sign = order === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [words ? row.cells[place].textContent : number(row.cells[place].textContent), row]);
    const missing = ([key]) => Number.isNaN(key) || key === "–" || key === "";
    const there = keyed.filter((one) => !missing(one));
    there.sort(([a], [b]) => sign * (words ? collator.compare(a, b) : a - b));
    return [...there, ...keyed.filter(missing)].map(([, row]) => row);
  }

  /* The first number of a cell: "1.5 ± 0.1 [1, 2]", "(1.5 ± 0.1)e-07", "1.5e-07", "−3". */
  function number(text) {
    const match = /^\s*\(?\s*([-+−]?[\d.]+(?:e[-+]?\d+)?)(?:[^)]*\)(e[-+]?\d+))?/.exec(text);
    return match ? Number(match[1].replace("−", "-") + (text.trim().startsWith("(") ? (match[2] ?? "") : "")) : NaN;
  }

  /* Arms and layers. */
  function changed(kind) {
    for (const listener of listeners) listener(kind);
  }

  /* The cells of the column of a head. */
  const columnOf = (head) => Array.from(head.closest("table").rows, (row) => row.cells[head.cellIndex]);

  function apply(kind) {
    for (const one of every(`[data-${kind}]`)) {
      const off = hidden[kind].has(one.dataset[kind]);
      for (const cell of one.matches("th") ? columnOf(one) : [one]) cell.classList.toggle(`off-${kind}`, off);
    }
    for (const one of every(`[data-shows-${kind}]`)) {
      one.setAttribute("aria-pressed", String(!hidden[kind].has(one.getAttribute(`data-shows-${kind}`))));
    }
    changed(kind);
  }

  function toggle(kind, name, names, alone) {
    const one = String(name);
    if (alone) {
      const isolated = hidden[kind].size === names.length - 1 && !hidden[kind].has(one);
      hidden[kind] = new Set(isolated ? [] : names.filter((other) => other !== one));
    } else if (!hidden[kind].delete(one)) hidden[kind].add(one);
    apply(kind);
  }

  const armNames = data.arms.map(({ arm }) => String(arm));

  function armChip(arm, name) {
    const chip = el("button", { className: "chip", type: "button", "data-shows-arm": arm, "aria-pressed": "true" });
    chip.append(swatch(arm), el("span", {}, name));
    chip.title = `${name}: click to hide or show, shift-click to show it alone`;
    chip.addEventListener("click", (event) => toggle("arm", arm, armNames, event.shiftKey));
    return chip;
  }

  function layerMenu(names) {
    const list = el("div");
    const summary = el("summary", { className: "tool" });
    const count = () => {
      summary.textContent = hidden.layer.size
        ? `Layers: ${names.length - hidden.layer.size} of ${names.length}`
        : `Layers: all ${names.length}`;
    };
    const boxes = names.map((name) => {
      const box = el("input", { type: "checkbox", checked: true });
      box.addEventListener("change", () => {
        toggle("layer", name, names, false);
        count();
      });
      return [name, box, el("label", {}, box, ` ${name}`)];
    });
    const all = (shown) => {
      hidden.layer = new Set(shown ? [] : names);
      for (const [, box] of boxes) box.checked = shown;
      apply("layer");
      count();
    };
    const button = (words, shown) => {
      const made = el("button", { className: "tool", type: "button" }, words);
      made.addEventListener("click", () => all(shown));
      return made;
    };
    const search = el("input", { type: "search", placeholder: "find", ariaLabel: "Find a layer" });
    search.addEventListener("input", () => {
      for (const [name, , label] of boxes) label.hidden = !name.toLowerCase().includes(search.value.toLowerCase());
    });
    list.append(button("All", true), " ", button("None", false), " ", ...(names.length > 12 ? [search] : []));
    list.append(...boxes.map(([, , label]) => label));
    count();
    return el("details", { className: "menu" }, summary, list);
  }

  function tools() {
    const place = document.getElementById("tools");
    const layers = Array.from(new Set(every("tr[data-layer]").map((row) => row.dataset.layer)));
    const made = [];
    if (data.arms.length > 1) made.push(...data.arms.map(({ arm, name }) => armChip(arm, name)));
    if (layers.length > 1) made.push(layerMenu(layers));
    if (!made.length) return;
    place.className = "tools";
    place.setAttribute("role", "group");
    place.setAttribute("aria-label", "Arms and layers shown");
    place.append(...made);
    root.style.scrollPaddingTop = `${place.offsetHeight + 12}px`;
  }

  function whole() {
    for (const one of every("details:not(.menu)")) one.open = true;
  }

  document.querySelector(".masthead").append(themeButton());
  markTerms();
  every("table.data").forEach(sortable);
  tools();
  watchTips();
  window.addEventListener("beforeprint", whole);
  return { data, el, hue, hidden, armChip, onChange: (listener) => listeners.push(listener) };
})();
