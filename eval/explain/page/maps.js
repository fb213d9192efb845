// Draws maps, small ones and a large one with a cursor.

const channel = document.createElement("canvas").getContext("2d", {willReadFrequently: true});

function colour(name) {
  channel.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
  channel.fillRect(0, 0, 1, 1);
  return channel.getImageData(0, 0, 1, 1).data;
}

// 256 colours along stops.
function along(names) {
  const stops = names.map(colour), table = new Uint8ClampedArray(256 * 3);
  for (let level = 0; level < 256; level++) {
    const place = level / 255 * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
    for (let one = 0; one < 3; one++) {
      table[3 * level + one] = stops[low][one] + (place - low) * (stops[low + 1][one] - stops[low][one]);
    }
  }
  return table;
}

let palette = null;

function readPalette() {
  const css = name => "rgb(" + [...colour(name)].slice(0, 3).join(",") + ")";
  palette = {
    weights: along(["ramp0", "ramp1", "ramp2", "ramp3", "ramp4"]), signs: along(["against", "blank", "for"]),
    unseen: colour("unseen"), ink: css("ink"), quiet: css("quiet"), mark: css("mark"), rule: css("rule"),
  };
}

// A picture of one pixel for each cell: the root of its part of the largest, so that weak ones are seen.
function painted(map, largest) {
  const canvas = document.createElement("canvas");
  canvas.width = map.S; canvas.height = map.T;
  const image = new ImageData(map.S, map.T), table = map.signed ? palette.signs : palette.weights;
  for (let i = 0, at = 0; i < map.T; i++) {
    for (let j = 0; j < map.S; j++, at += 4) {
      const cell = map.at(i, j), root = Math.sign(cell.value) * Math.sqrt(Math.abs(cell.value) / largest);
      const level = cell.unseen ? -1 : Math.round(map.signed ? 127.5 * (1 + root) : 255 * root);
      for (let one = 0; one < 3; one++) image.data[at + one] = level < 0 ? palette.unseen[one] : table[3 * level + one];
      image.data[at + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

function largestOf(map) {
  let most = 0;
  for (let i = 0; i < map.T; i++) for (let j = 0; j < map.S; j++) most = Math.max(most, Math.abs(map.at(i, j).value));
  return most || 1;
}

const LABELLED = 64, SHORT = 12, redraws = [];

function short(text) { return [...text].length > SHORT ? [...text].slice(0, SHORT - 1).join("") + "…" : text; }

// A canvas with a cursor; show(map, down, across, at) sets what is there, and moved(i, j) is told of the cursor.
function mapView(canvas, moved) {
  let map = null, picture = null, down = [], across = [], i = 0, j = 0, size = 1, left = 0, top = 0;
  function draw() {
    if (!map) return;
    const most = Math.max(map.T, map.S), labels = most <= LABELLED, ratio = window.devicePixelRatio || 1;
    size = Math.max(1, Math.min(22, Math.floor((labels ? 620 : 640) / most)));
    if (labels) size = Math.max(size, 10);
    left = labels ? 96 : 4; top = labels ? 90 : 4;
    const width = left + size * map.S + 4, height = top + size * map.T + 4, pen = canvas.getContext("2d");
    canvas.width = width * ratio; canvas.height = height * ratio;
    canvas.style.width = width + "px"; canvas.style.aspectRatio = width + " / " + height;
    pen.scale(ratio, ratio);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, left, top, size * map.S, size * map.T);
    pen.strokeStyle = palette.rule;
    pen.strokeRect(left - .5, top - .5, size * map.S + 1, size * map.T + 1);
    if (labels) label(pen);
    pen.strokeStyle = palette.mark; pen.lineWidth = 2;
    pen.strokeRect(left + size * j - 1, top + size * i - 1, size + 2, size + 2);
  }
  function label(pen) {
    pen.font = Math.min(12, size + 1) + "px ui-monospace, monospace";
    pen.textBaseline = "middle";
    down.forEach((text, row) => {
      pen.fillStyle = row === i ? palette.mark : palette.quiet;
      pen.textAlign = "right";
      pen.fillText(short(text), left - 5, top + size * (row + .5), left - 6);
    });
    across.forEach((text, column) => {
      pen.save();
      pen.translate(left + size * (column + .5), top - 5);
      pen.rotate(-Math.PI / 2);
      pen.fillStyle = column === j ? palette.mark : palette.quiet;
      pen.textAlign = "left";
      pen.fillText(short(text), 0, 0, top - 6);
      pen.restore();
    });
  }
  function go(row, column) {
    if (!map) return;
    i = Math.max(0, Math.min(map.T - 1, row)); j = Math.max(0, Math.min(map.S - 1, column));
    draw();
    moved(i, j);
  }
  function pointed(event) {
    const box = canvas.getBoundingClientRect(), scale = canvas.width / (window.devicePixelRatio || 1) / box.width;
    const x = (event.clientX - box.left) * scale - left, y = (event.clientY - box.top) * scale - top;
    if (x >= 0 && y >= 0 && x < size * map.S && y < size * map.T) go(Math.floor(y / size), Math.floor(x / size));
  }
  const steps = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e6], End: [0, 1e6],
    PageUp: [-10, 0], PageDown: [10, 0]};
  canvas.addEventListener("click", pointed);
  canvas.addEventListener("pointermove", event => { if (event.buttons || event.pointerType === "mouse") pointed(event); });
  canvas.addEventListener("keydown", event => {
    const step = steps[event.key];
    if (step) { event.preventDefault(); go(i + step[0], j + step[1]); }
  });
  function repaint() { if (map) { picture = painted(map, largestOf(map)); draw(); } }
  redraws.push(repaint);
  return {
    show(next, rows, columns, at) { map = next; down = rows; across = columns; picture = painted(map, largestOf(map)); go(...at); },
    cursor() { return [i, j]; },
    repaint,
  };
}
