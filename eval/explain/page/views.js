// The views of maps: heads, queries and keys, rollout.

function element(name, text, parent) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

function isolated(parent, ...texts) {
  parent.replaceChildren();
  texts.forEach((text, at) => element(at % 2 ? "bdi" : "span", text, parent));
}

function options(select, names) {
  select.replaceChildren();
  names.forEach((name, at) => { element("option", name.replaceAll("_", " "), select).value = at; });
}

// The tokens that block b of `count` stands for.
function block(b, count, tokens) { return [Math.ceil(b * tokens / count), Math.ceil((b + 1) * tokens / count) - 1]; }

function blockName(b, count, pieces) {
  const [first, last] = block(b, count, pieces.length);
  return first === last ? first + " " + pieces[first] : first + " to " + last;
}

function blockNames(count, pieces) { return pieces.length === count ? pieces : Array.from({length: count}, (_, b) => blockName(b, count, pieces)); }

// All there is of a head: whole, or its largest cells, or pooled.
function headOf(place, pieces, layer, head) {
  const T = pieces[place.down].length, S = pieces[place.across].length;
  const index = part => part ? part.heads.findIndex(one => one[0] === layer && one[1] === head) : -1;
  if (index(place.full) >= 0) {
    return {kind: "", map: openMap(bytesOf(place.full.data[index(place.full)]), 0, T, S, place.causal, place.signed)};
  }
  if (index(place.largest) >= 0) {
    const k = place.largest.k, bytes = bytesOf(place.largest.data[index(place.largest)]);
    return {kind: "the " + k + " largest weights of each row", map: openLargest(bytes, T, S, k, place.causal, place.signed)};
  }
  const kind = place.pooled.down === T && place.pooled.across === S ? "" : "the largest weight of each block of tokens";
  return {kind, map: pooledOf(place, layer * place.heads + head)};
}

function pooledOf(place, number) {
  place.bytes = place.bytes || bytesOf(place.pooled.data);
  return openMap(place.bytes, number, place.pooled.down, place.pooled.across, place.causal, place.signed);
}

function headsView(section, input, moved) {
  const own = section.querySelector(".heads"), overview = own.querySelector(".overview"), readout = own.querySelector(".readout");
  const order = own.querySelector(".order"), which = own.querySelector(".place"), body = own.querySelector("tbody");
  let place = null, layer = 0, head = 0, shown = null;
  const view = mapView(own.querySelector(".one"), (i, j) => {
    const down = input.pieces[place.down], across = input.pieces[place.across];
    const names = [blockName(i, shown.map.T, down), blockName(j, shown.map.S, across)];
    isolated(readout, "", names[0], " looks at ", names[1], ": ", told(shown.map.at(i, j)));
    rowTable(i, names[0], across);
    // Of blocks of tokens there is no query.
    if (shown.map.T === down.length && shown.map.S === across.length) moved(place.name, i, j);
  });
  function rowTable(i, name, across) {
    const cells = Array.from({length: shown.map.S}, (_, j) => [j, shown.map.at(i, j)]).filter(one => !one[1].unseen && one[1].value !== 0);
    cells.sort((a, b) => Math.abs(b[1].value) - Math.abs(a[1].value));
    isolated(own.querySelector("caption"), "What ", name, " looks at most");
    body.replaceChildren();
    for (const [j, cell] of cells.slice(0, 10)) {
      const row = element("tr", undefined, body), title = element("th", undefined, row);
      title.scope = "row";
      element("bdi", blockName(j, shown.map.S, across), title);
      element("td", told(cell), row);
    }
  }
  function open(nextLayer, nextHead) {
    layer = nextLayer; head = nextHead; shown = headOf(place, input.pieces, layer, head);
    for (const button of overview.children) {
      const here = button.dataset.layer === String(layer) && button.dataset.head === String(head);
      button.setAttribute("aria-pressed", here); button.tabIndex = here ? 0 : -1;
    }
    own.querySelector(".head-name").textContent = place.name + ", layer " + layer + ", head " + head + (shown.kind ? ": " + shown.kind : "");
    const rows = blockNames(shown.map.T, input.pieces[place.down]), columns = blockNames(shown.map.S, input.pieces[place.across]);
    const row = input.place < 0 || place.name.startsWith("encoder") ? shown.map.T - 1 : Math.floor(input.place * shown.map.T / input.pieces[place.down].length);
    let best = 0;
    for (let j = 0; j < shown.map.S; j++) if (shown.map.at(row, j).value > shown.map.at(row, best).value) best = j;
    view.show(shown.map, rows, columns, [row, best]);
  }
  function mostImportant() {
    const known = place.statistics.importance || [0];
    return known.indexOf(Math.max(...known));
  }
  function ordered() {
    const count = place.layers * place.heads, numbers = Array.from({length: count}, (_, at) => at), name = orders[order.value];
    if (order.value > 0) numbers.sort((a, b) => place.statistics[name][b] - place.statistics[name][a]);
    overview.style.gridTemplateColumns = order.value > 0 ? "" : "repeat(" + place.heads + ", minmax(0, " + Math.max(2.5, Math.min(5.5, 40 / place.layers - 1)) + "rem))";
    overview.replaceChildren();
    for (const at of numbers) {
      const button = element("button", undefined, overview), canvas = element("canvas", undefined, button);
      const title = Math.floor(at / place.heads) + "." + at % place.heads;
      const number = order.value > 0 ? place.statistics[name][at] : null;
      const value = number === null ? "" : ": " + Number(number.toPrecision(3));
      button.type = "button"; button.dataset.layer = Math.floor(at / place.heads); button.dataset.head = at % place.heads;
      button.setAttribute("aria-label", "layer " + button.dataset.layer + ", head " + button.dataset.head + (value ? ", " + name + value : ""));
      element("span", title + value, button);
      thumbnail(canvas, pooledOf(place, at));
    }
    const first = order.value > 0 ? numbers[0] : mostImportant();
    open(Math.floor(first / place.heads), first % place.heads);
  }
  let orders = [];
  function choose() {
    place = input.places[which.value]; orders = ["layer and head", ...Object.keys(place.statistics)];
    options(order, orders);
    ordered();
  }
  overview.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button) open(Number(button.dataset.layer), Number(button.dataset.head));
  });
  overview.addEventListener("keydown", event => {
    const buttons = [...overview.children], here = buttons.indexOf(document.activeElement);
    const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -place.heads, ArrowDown: place.heads}[event.key];
    if (here >= 0 && step && buttons[here + step]) {
      event.preventDefault();
      buttons[here + step].focus();
    }
  });
  redraws.push(() => [...overview.children].forEach(button => {
    thumbnail(button.firstChild, pooledOf(place, button.dataset.layer * place.heads + Number(button.dataset.head)));
  }));
  options(which, input.places.map(one => one.name));
  which.parentElement.hidden = input.places.length < 2;
  which.addEventListener("change", choose);
  order.addEventListener("change", ordered);
  choose();
}

function thumbnail(canvas, map) {
  canvas.width = map.S; canvas.height = map.T;
  canvas.getContext("2d").drawImage(painted(map, largestOf(map)), 0, 0);
}

function rolloutView(section, input) {
  const own = section.querySelector(".rollout"), which = own.querySelector(".place"), layer = own.querySelector(".layer");
  let place = null, map = null;
  const view = mapView(own.querySelector(".one"), (i, j) => {
    const names = [blockName(i, map.T, input.pieces[place.down]), blockName(j, map.S, input.pieces[place.across])];
    isolated(own.querySelector(".readout"), "To ", names[0], " has come of ", names[1], ": ", told(map.at(i, j)));
  });
  function show(at) {
    map = pooledOf(place, Number(layer.value));
    own.querySelector(".layer-name").textContent = layer.value;
    view.show(map, blockNames(map.T, input.pieces[place.down]), blockNames(map.S, input.pieces[place.across]), at || view.cursor());
  }
  function choose() {
    place = input.rollout[which.value]; layer.max = place.layers - 1; layer.value = place.layers - 1;
    show([place.pooled.down - 1, 0]);
  }
  options(which, input.rollout.map(one => one.name));
  which.parentElement.hidden = input.rollout.length < 2;
  which.addEventListener("change", choose);
  layer.addEventListener("input", () => show());
  choose();
}

function productsView(section, input) {
  const own = section.querySelector(".products"), parts = input.products, canvas = own.querySelector(".parts"), K = parts.width;
  const place = input.places.find(one => one.name === parts.place);
  const down = input.pieces[place.down], across = input.pieces[place.across];
  const queries = openMap(bytesOf(parts.queries), 0, down.length, K, false, true);
  const keys = openMap(bytesOf(parts.keys), 0, across.length, K, false, true);
  let i = down.length - 1, j = 0;
  own.querySelector(".products-name").textContent = "Of " + parts.place + ", layer " + parts.layer + ", head " + parts.head +
    ": the query of the token that looks, the key of the token it looks at, and their products, dimension by dimension, " +
    "whose scaled sum is what the mask, a bias and the softmax make a weight of. The pair is the one chosen above.";
  function draw() {
    let sum = 0;
    const rows = [[], [], []];
    for (let one = 0; one < K; one++) {
      const q = queries.at(i, one).value, k = keys.at(j, one).value;
      rows[0].push(q); rows[1].push(k); rows[2].push(q * k * parts.scale);
      sum += q * k * parts.scale;
    }
    const cell = Math.max(4, Math.min(22, Math.floor(760 / K))), ratio = window.devicePixelRatio || 1, pen = canvas.getContext("2d");
    const width = 90 + cell * K, height = 90;
    canvas.width = width * ratio; canvas.height = height * ratio;
    canvas.style.width = width + "px"; canvas.style.aspectRatio = width + " / " + height;
    pen.scale(ratio, ratio);
    pen.font = "12px ui-monospace, monospace"; pen.textBaseline = "middle";
    ["query", "key", "product"].forEach((name, row) => {
      const most = Math.max(...rows[row].map(Math.abs)) || 1;
      pen.fillStyle = palette.ink;
      pen.fillText(name, 0, 30 * row + 13);
      rows[row].forEach((value, one) => {
        const level = Math.round(127.5 * (1 + value / most));
        pen.fillStyle = "rgb(" + palette.signs.slice(3 * level, 3 * level + 3).join(",") + ")";
        pen.fillRect(84 + cell * one, 30 * row, cell - (cell > 5 ? 1 : 0), 26);
      });
    });
    isolated(own.querySelector(".readout"), "", i + " " + down[i], " and ", j + " " + across[j], ": products × scale sum to ", sum.toPrecision(3));
  }
  redraws.push(draw);
  draw();
  return (name, row, column) => {
    if (name !== place.name) return;
    i = row; j = column;
    draw();
  };
}
