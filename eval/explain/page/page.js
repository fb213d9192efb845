// Tokens, tables, and which input is shown.

function tokensView(section) {
  const own = section.querySelector(".tokens"), readout = own.querySelector(".readout");
  const tables = [...own.querySelectorAll("table.tokens")];
  function at(token) {
    own.querySelectorAll(".map .at").forEach(one => one.classList.remove("at"));
    const map = token.parentElement, index = [...map.querySelectorAll("bdi")].indexOf(token);
    const site = Number(map.dataset.method), table = tables[site];
    for (const strip of own.querySelectorAll('.map[data-method="' + site + '"]')) {
      const same = strip.querySelectorAll("bdi")[index];
      if (same) same.classList.add("at");
    }
    const row = table.tBodies[0].rows[index], parts = [];
    [...row.cells].slice(1).forEach((cell, method) => {
      parts.push(" · " + table.tHead.rows[0].cells[method + 1].textContent + " ", cell.textContent);
    });
    isolated(readout, "", row.cells[0].textContent, ...parts);
  }
  own.addEventListener("pointerover", event => { const token = event.target.closest(".map bdi"); if (token) at(token); });
  own.addEventListener("click", event => { const token = event.target.closest(".map bdi"); if (token) at(token); });
  own.addEventListener("keydown", event => {
    const map = event.target.closest(".map"), step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!map || !step) return;
    event.preventDefault();
    const tokens = [...map.querySelectorAll("bdi")], here = tokens.findIndex(one => one.classList.contains("at"));
    const next = tokens[Math.max(0, Math.min(tokens.length - 1, here + step))];
    at(next);
    next.scrollIntoView({block: "nearest"});
  });
}

function sortable(table) {
  [...table.tHead.rows[0].cells].forEach((title, column) => {
    const text = title.textContent, button = document.createElement("button");
    button.type = "button";
    element("bdi", text, button);
    title.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") !== "descending", body = table.tBodies[0], rows = [...body.rows];
      const key = row => Number(row.cells[column].textContent);
      rows.sort((a, b) => (down ? key(b) - key(a) : key(a) - key(b)));
      body.append(...rows);
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
}

function show(section, input) {
  section.querySelectorAll(".script").forEach(one => { one.hidden = false; });
  section.querySelectorAll(".static").forEach(one => { one.hidden = true; });
  if (section.querySelector(".tokens")) tokensView(section);
  section.querySelectorAll(".sortable").forEach(sortable);
  let follow = () => {};
  if (input.products) follow = productsView(section, input);
  else if (section.querySelector(".products")) section.querySelector(".products").hidden = true;
  if (input.places.length) {
    headsView(section, input, follow);
  }
  if (input.rollout.length) rolloutView(section, input);
  else if (section.querySelector(".rollout")) section.querySelector(".rollout").hidden = true;
}

document.addEventListener("DOMContentLoaded", () => {
  const inputs = JSON.parse(document.getElementById("data").textContent).inputs;
  const sections = [...document.querySelectorAll("section.input")], made = new Set(), select = document.querySelector(".inputs");
  readPalette();
  function choose(number) {
    sections.forEach((section, at) => { section.hidden = at !== number; });
    if (!made.has(number)) show(sections[number], inputs[number]);
    made.add(number);
  }
  select.closest(".choice").hidden = inputs.length < 2;
  select.addEventListener("change", () => choose(Number(select.value)));
  choose(0);
  const again = () => { readPalette(); redraws.forEach(one => one()); };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  addEventListener("beforeprint", () => { document.documentElement.classList.add("printing"); again(); });
  addEventListener("afterprint", () => { document.documentElement.classList.remove("printing"); again(); });
});
