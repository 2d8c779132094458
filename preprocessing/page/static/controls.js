// The controls below the volumes: intensity window, overlay, boxes, places.

const NARROWEST = 1;

/** Connects the controls that all cases share; called once. */
function bindControls(view) {
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  const [width, centre] = [byId("window-width"), byId("window-centre")];
  for (const slider of [width, centre]) {
    slider.addEventListener("input", () =>
      setWindow(view, Number(width.value), Number(centre.value)),
    );
  }
  const showOpacities = () => {
    for (const name of ["reference", "prediction"]) {
      byId(`${name}-opacity-value`).textContent = `${byId(`${name}-opacity`).value} %`;
    }
  };
  showOpacities();
  for (const id of ["reference-opacity", "prediction-opacity", "differences", "score-threshold"]) {
    byId(id).addEventListener("input", () => {
      showOpacities();
      draw(view);
    });
  }
  const projection = byId("projection-kind");
  projection.value = view.content.projection_kind;
  projection.addEventListener("change", () => {
    for (const panel of view.panels) panel.cut = null;
    draw(view);
  });
}

function setWindow(view, width, centre) {
  view.window = { width, centre };
  for (const name of ["width", "centre"]) {
    const slider = byId(`window-${name}`);
    slider.value = view.window[name];
    byId(`window-${name}-value`).textContent = formatNumber(view.window[name], 0);
  }
  draw(view);
}

function makeWindowControls(view) {
  const { image } = view.volume;
  const [low, high] = view.content.task.window;
  let [least, most] = [low, high];
  for (let i = 0; image && i < image.length; i++) {
    if (image[i] < least) least = image[i];
    if (image[i] > most) most = image[i];
  }
  const [width, centre] = [byId("window-width"), byId("window-centre")];
  Object.assign(width, { min: NARROWEST, max: Math.ceil(most - least), step: 1 });
  Object.assign(centre, { min: Math.floor(least), max: Math.ceil(most), step: 1 });
  const presets = byId("window-presets");
  presets.replaceChildren();
  const all = Object.entries(view.content.task.windows);
  if (image) all.push(["Automatic", spread(image)]);
  for (const [name, range] of all) {
    addButton(presets, name, () => setWindow(view, range[1] - range[0], (range[0] + range[1]) / 2));
  }
  setWindow(view, high - low, (low + high) / 2);
}

function makeOverlayControls(view) {
  const { volume } = view;
  const both = Boolean(volume.reference && volume.prediction);
  byId("reference-control").hidden = !volume.reference && !volume.boxes.length;
  byId("prediction-control").hidden = !volume.prediction;
  byId("differences-control").hidden = !both;
  byId("overlay-controls").hidden = !(volume.reference || volume.prediction || volume.boxes.length);
  byId("box-controls").hidden = !volume.boxes.length;
  byId("score-control").hidden = volume.boxes.every((box) => box.score === null);
  const kinds = Object.keys(BOX_STYLES).filter((kind) => volume.boxes.some((box) => box.kind === kind));
  const legend = byId("box-legend");
  legend.replaceChildren();
  for (const kind of kinds) {
    const item = addElement(legend, "span");
    const swatch = addElement(item, "span", { class: "swatch" });
    swatch.style.borderColor = BOX_STYLES[kind].colour;
    swatch.style.borderStyle = BOX_STYLES[kind].dash.length ? "dashed" : "solid";
    swatch.style.background = "#000";
    item.append(kind);
  }
  const buttons = byId("classes");
  buttons.replaceChildren();
  if (!volume.reference && !volume.prediction) return;
  for (const each of view.classes) {
    const button = addButton(buttons, "", () => {
      each.on = !each.on;
      button.setAttribute("aria-pressed", each.on);
      draw(view);
    });
    button.setAttribute("aria-pressed", each.on);
    const swatch = addElement(button, "span", { class: "swatch" });
    swatch.style.borderColor = swatch.style.background = view.content.task.colours[each.value];
    button.append(each.name);
  }
  if (both) {
    for (const [name, colour] of Object.entries(DIFFERENCE_COLOURS)) {
      const item = addElement(buttons, "span", { class: "difference" });
      const swatch = addElement(item, "span", { class: "swatch" });
      swatch.style.borderColor = swatch.style.background = colour;
      item.append(`difference: ${name}`);
    }
  }
}

/** Returns the lowest score that is drawn; the slider spans the scores of all cases. */
function scoreFloor(view) {
  if (!view.scores.length) return -Infinity;
  const [low, high] = [Math.min(...view.scores), Math.max(...view.scores)];
  const value = low + (Number(byId("score-threshold").value) / 1000) * (high - low);
  byId("score-threshold-value").textContent = formatNumber(value, 3);
  // At the slider's end the detection with the highest score is still drawn.
  return value - 1e-9 * Math.max(1, Math.abs(value));
}

function makeJumps(view) {
  const { volume, profiles } = view;
  const jumps = byId("jumps");
  jumps.replaceChildren();
  const add = (text, go) => addButton(jumps, text, go);
  const largest = (counts) => counts.indexOf(Math.max(...counts));
  for (const { counts, value } of profiles) {
    if (!value || !counts.some(Boolean)) continue;
    const name = view.content.task.classes[value];
    add(`Most ${name}`, () => goToLabel(view, value));
  }
  if (view.differences?.some(Boolean)) {
    add("Most differences", () => moveTo(view, 0, largest(view.differences)));
  }
  add("Middle", () => {
    view.position = volume.shape.map((size) => size >> 1);
    draw(view);
  });
  const boxJumps = byId("box-jumps");
  boxJumps.replaceChildren();
  for (const box of volume.boxes) {
    const kind = box.kind === "reference" ? "Reference" : "Detection";
    addButton(boxJumps, `${kind}: ${box.text}`, () => goToBox(view, box));
  }
}
