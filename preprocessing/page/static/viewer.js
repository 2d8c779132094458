// The viewer: one case at a time, three planes and a projection, and what changes how they look.

const DIFFERENCE_COLOURS = { missed: "#56B4E9", extra: "#D55E00" };
const BOX_STYLES = {
  reference: { colour: "#56B4E9", dash: [] },
  hit: { colour: "#F0E442", dash: [9, 5] },
  "further hit": { colour: "#F0E442", dash: [2, 5] },
  "false positive": { colour: "#FF7A1A", dash: [2, 5] },
};
const NARROWEST = 1;

/** Makes the viewer of a page's content; returns {open(case index)}. */
function makeViewer(content, onOpen) {
  const byId = (id) => document.getElementById(id);
  const shown = content.order.filter((index) => content.cases[index].volume);
  const classes = content.task.classes.map((name, value) => ({ name, value, on: true })).slice(1);
  const panels = [];
  const state = { index: null, volume: null, position: [0, 0, 0], window: null, opening: 0, ready: false };
  if (!shown.length) return { open: () => {}, canOpen: () => false };
  byId("viewer").hidden = false;

  const scores = shown
    .flatMap((index) => content.cases[index].volume.boxes.map((box) => box.score))
    .filter((score) => score !== null);
  const opacity = (name) => Number(byId(`${name}-opacity`).value) / 100;
  const limits = () => {
    const { width, centre } = state.window;
    return [centre - width / 2, centre + width / 2];
  };

  function makePanel(parent, { axis, isProjection, isMain, share }) {
    const figure = addElement(parent, "figure", { class: isMain ? "plane main" : "plane" });
    const caption = addElement(figure, "figcaption");
    const name = addElement(caption, "span");
    const place = addElement(caption, "span");
    const canvas = addElement(figure, "canvas", { class: "picture", tabindex: 0, role: "img" });
    const panel = { axis, isProjection, isMain, share, figure, canvas, name, place };
    canvas.addEventListener("click", (event) => goToClick(panel, event));
    if (isProjection) return panel;
    panel.slider = addElement(figure, "input", { type: "range", min: 0, step: 1 });
    panel.slider.addEventListener("input", () => moveTo(axis, Number(panel.slider.value)));
    if (isMain) panel.profile = addElement(figure, "canvas", { class: "profile" });
    const wheel = (event) => {
      event.preventDefault();
      moveTo(axis, state.position[axis] + Math.sign(event.deltaY));
    };
    canvas.addEventListener("wheel", wheel, { passive: false });
    canvas.addEventListener("keydown", (event) => moveByKey(axis, event));
    return panel;
  }

  function moveByKey(axis, event) {
    const last = state.volume.shape[axis] - 1;
    const now = state.position[axis];
    const targets = {
      ArrowUp: now + 1,
      ArrowRight: now + 1,
      ArrowDown: now - 1,
      ArrowLeft: now - 1,
      PageUp: now + 10,
      PageDown: now - 10,
      Home: 0,
      End: last,
    };
    if (!(event.key in targets) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    moveTo(axis, targets[event.key]);
  }

  function moveTo(axis, index) {
    if (!state.volume) return;
    const clamped = Math.max(0, Math.min(state.volume.shape[axis] - 1, Math.round(index)));
    state.position[axis] = clamped;
    draw({ isMove: true });
  }

  function goToClick(panel, event) {
    if (!state.volume) return;
    const { geometry, frame } = panel;
    const bounds = panel.canvas.getBoundingClientRect();
    const ratio = panel.canvas.width / bounds.width;
    const column = ((event.clientX - bounds.left) * ratio - frame.x) / frame.scaleX;
    const row = ((event.clientY - bounds.top) * ratio - frame.y) / frame.scaleY;
    if (column < 0 || row < 0 || column >= geometry.width || row >= geometry.height) return;
    const voxel = voxelAt(geometry, Math.floor(column), Math.floor(row));
    for (const [axis, index] of Object.entries(voxel)) state.position[axis] = index;
    draw({ isMove: true });
  }

  /** Builds the panels for a case's directions; the slice plane is the large one. */
  function layOut() {
    const stage = byId("stage");
    stage.replaceChildren();
    panels.length = 0;
    const projectionAxis = content.projection_axis;
    panels.push(makePanel(stage, { axis: 0, isMain: true }));
    const others = [1, 2].map((axis) => ({ axis, share: 1 }));
    if (state.volume.image) {
      // A projection across the slices is what boxes are read on: large, and next to the slice.
      const isFirst = projectionAxis === 0;
      const projection = { axis: projectionAxis, isProjection: true, share: isFirst ? 2.4 : 1 };
      others.splice(isFirst ? 0 : 2, 0, projection);
    }
    for (const each of others) panels.push(makePanel(stage, each));
    for (const panel of panels) {
      panel.geometry = planeGeometry(state.volume, panel.axis);
      if (panel.isProjection) {
        const { image } = state.volume;
        panel.cut = null;
        panel.labels = ["reference", "prediction"].map((name) => {
          const labels = state.volume[name];
          return labels && project(labels, state.volume, panel.geometry, "max");
        });
        panel.cutImage = () => project(image, state.volume, panel.geometry, byId("projection-kind").value);
      } else {
        panel.slider.max = state.volume.shape[panel.axis] - 1;
        panel.slider.setAttribute("aria-label", `${panel.geometry.name} slice`);
      }
    }
    size();
  }

  /** Fits every canvas to its place, at the screen's own resolution and true aspect ratio. */
  function size() {
    if (!state.volume) return;
    const ratio = window.devicePixelRatio || 1;
    const side = panels.filter((panel) => !panel.isMain);
    const shares = side.reduce((sum, panel) => sum + panel.share, 0);
    const tallest = Math.max(420, Math.min(860, window.innerHeight - 270));
    for (const panel of panels) {
      const width = panel.canvas.clientWidth;
      const { widthMm, heightMm } = panel.geometry;
      // Captions and sliders of the side take their room too.
      const room = tallest + 90 - 60 * side.length;
      const most = panel.isMain ? tallest : (room * panel.share) / shares;
      const height = panel.isMain ? Math.min(most, (width * heightMm) / widthMm) : most;
      panel.canvas.style.height = `${Math.round(height)}px`;
      panel.canvas.width = Math.round(width * ratio);
      panel.canvas.height = Math.round(Math.round(height) * ratio);
      const pixelsPerMm = Math.min(panel.canvas.width / widthMm, panel.canvas.height / heightMm);
      panel.frame = {
        x: (panel.canvas.width - widthMm * pixelsPerMm) / 2,
        y: (panel.canvas.height - heightMm * pixelsPerMm) / 2,
        scaleX: (widthMm * pixelsPerMm) / panel.geometry.width,
        scaleY: (heightMm * pixelsPerMm) / panel.geometry.height,
        pixelsPerMm,
        ratio,
      };
      if (panel.profile) {
        panel.profile.width = Math.round(panel.profile.clientWidth * ratio);
        panel.profile.height = Math.round(panel.profile.clientHeight * ratio);
      }
    }
    draw();
  }

  /** Draws all panels; after a move projections stay as they are. */
  function draw({ isMove = false } = {}) {
    if (!state.ready) return;
    for (const panel of panels) if (!(isMove && panel.isProjection)) drawPanel(panel);
  }

  function drawPanel(panel) {
    const { volume, position } = state;
    const { axis, geometry, frame, canvas } = panel;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.translate(frame.x, frame.y);
    const size = [geometry.width * frame.scaleX, geometry.height * frame.scaleY];
    let [reference, prediction] = panel.isProjection
      ? panel.labels
      : [volume.reference, volume.prediction].map(
          (labels) => labels && cutPlane(labels, volume, geometry, position[axis]),
        );
    if (volume.image) {
      let plane, window;
      if (panel.isProjection) {
        panel.cut = panel.cut || panel.cutImage();
        [plane, window] = [panel.cut, spread(panel.cut)];
      } else {
        [plane, window] = [cutPlane(volume.image, volume, geometry, position[axis]), limits()];
      }
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(greyPicture(plane, geometry, window), 0, 0, ...size);
    }
    const on = (value) => value && classes[value - 1]?.on;
    if (byId("differences").checked && reference && prediction) {
      drawDifferences(context, geometry, reference, prediction, on, size);
    } else {
      if (prediction) drawAreas(context, geometry, prediction, on, size, opacity("prediction"));
      if (reference) drawOutlines(context, panel, reference, on, opacity("reference"));
      else if (prediction) drawOutlines(context, panel, prediction, on, opacity("prediction"));
    }
    drawBoxes(context, panel);
    drawFrame(context, panel, size);
    describe(panel);
    if (panel.profile) drawProfile(panel);
  }

  function drawAreas(context, geometry, labels, on, size, alpha) {
    const colours = classes.map(({ value }) => rgbOf(content.task.colours[value]));
    const picture = areaPicture(geometry, (i) => on(labels[i]) && colours[labels[i] - 1]);
    context.save();
    context.globalAlpha = alpha;
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, ...size);
    context.restore();
  }

  function drawDifferences(context, geometry, reference, prediction, on, size) {
    const [missed, extra] = Object.values(DIFFERENCE_COLOURS).map(rgbOf);
    const picture = areaPicture(geometry, (i) => {
      if (reference[i] === prediction[i] || !(on(reference[i]) || on(prediction[i]))) return null;
      return reference[i] > prediction[i] ? missed : extra;
    });
    context.save();
    context.globalAlpha = Math.max(0.3, opacity("prediction"));
    context.imageSmoothingEnabled = false;
    context.drawImage(picture, 0, 0, ...size);
    context.restore();
  }

  function drawOutlines(context, panel, labels, on, alpha) {
    const { geometry, frame } = panel;
    context.save();
    context.globalAlpha = alpha;
    for (const { value } of classes) {
      if (!on(value)) continue;
      const path = outlinePath(labels, geometry, value, frame.scaleX, frame.scaleY);
      strokeTwice(context, path, content.task.colours[value], 1.6 * frame.ratio);
    }
    context.restore();
  }

  /** Draws the boxes that a plane cuts; a projection has all of them. */
  function drawBoxes(context, panel) {
    const { geometry, frame, axis } = panel;
    const ratio = frame.ratio;
    const floor = scoreFloor();
    for (const box of state.volume.boxes) {
      if (box.score !== null && box.score < floor) continue;
      const index = state.position[axis];
      if (!panel.isProjection && !cuts(box, axis, index)) continue;
      const edges = boxOnPlane(geometry, box);
      const [x, y] = [edges.left * frame.scaleX, edges.top * frame.scaleY];
      const width = (edges.right - edges.left) * frame.scaleX;
      const height = (edges.bottom - edges.top) * frame.scaleY;
      const style = BOX_STYLES[box.kind];
      const path = new Path2D();
      path.rect(x, y, width, height);
      context.save();
      context.globalAlpha = box.kind === "reference" ? opacity("reference") : 1;
      strokeTwice(context, path, style.colour, 2 * ratio, style.dash.map((n) => n * ratio));
      // References are named above their box, detections below, so that both can be read.
      const below = box.kind !== "reference";
      const line = below ? y + height + 10 * ratio : y - 10 * ratio;
      writeText(context, box.text, x + width / 2, line, 12 * ratio, style.colour);
      context.restore();
    }
  }

  /** Draws letters, the lines of the other planes and a scale of 5 cm. */
  function drawFrame(context, panel, [width, height]) {
    const { geometry, frame } = panel;
    const { left, right, top, bottom } = geometry.letters;
    const size = 13 * frame.ratio;
    if (!panel.isProjection) {
      const path = new Path2D();
      const lineAt = (axis, flipped, count) => {
        const index = state.position[axis];
        return (flipped ? count - 1 - index : index) + 0.5;
      };
      const x = lineAt(geometry.columnAxis, geometry.mirrored, geometry.width) * frame.scaleX;
      const y = lineAt(geometry.rowAxis, geometry.turned, geometry.height) * frame.scaleY;
      const gap = 14 * frame.ratio;
      addLine(path, x, 0, x, Math.max(0, y - gap));
      addLine(path, x, Math.min(height, y + gap), x, height);
      addLine(path, 0, y, Math.max(0, x - gap), y);
      addLine(path, Math.min(width, x + gap), y, width, y);
      context.save();
      context.strokeStyle = "rgba(255, 255, 255, 0.28)";
      context.lineWidth = frame.ratio;
      context.stroke(path);
      context.restore();
    }
    context.setTransform(1, 0, 0, 1, 0, 0);
    const { canvas } = panel;
    writeText(context, left, size * 0.9, canvas.height / 2, size);
    writeText(context, right, canvas.width - size * 0.9, canvas.height / 2, size);
    writeText(context, top, canvas.width / 2, size * 0.9, size);
    writeText(context, bottom, canvas.width / 2, canvas.height - size * 0.9, size);
    drawScale(context, panel, size);
  }

  function drawScale(context, panel, size) {
    const { canvas, frame } = panel;
    const lengthMm = [100, 50, 20, 10, 5].find((mm) => mm * frame.pixelsPerMm < canvas.width / 4) || 1;
    const [x, y] = [size, canvas.height - size];
    const path = new Path2D();
    addLine(path, x, y, x + lengthMm * frame.pixelsPerMm, y);
    strokeTwice(context, path, "#f2f2f2", 2 * frame.ratio);
    const text = lengthMm >= 10 ? `${lengthMm / 10} cm` : `${lengthMm} mm`;
    writeText(context, text, x, y - size * 0.9, size * 0.85, "#f2f2f2", "left");
  }

  function describe(panel) {
    const { volume, position } = state;
    const { axis, geometry } = panel;
    if (panel.isProjection) {
      const kind = byId("projection-kind").value === "max" ? "maximum" : "mean";
      panel.name.textContent = `${geometry.name} projection`;
      panel.place.textContent = `${kind} of all slices`;
      panel.canvas.setAttribute("aria-label", `${geometry.name} projection, ${kind}`);
      return;
    }
    const [start, step] = volume.file_index[axis];
    const number = Math.round(start + step * position[axis]) + 1;
    panel.name.textContent = geometry.name;
    panel.place.textContent = `slice ${number} of ${volume.file_shape[axis]}`;
    panel.slider.value = position[axis];
    panel.slider.setAttribute("aria-valuetext", panel.place.textContent);
    panel.canvas.setAttribute("aria-label", `${geometry.name}, ${panel.place.textContent}`);
    panel.canvas.dataset.index = position[axis];
  }

  /** Draws how much of each label, and of the disagreement, every slice holds. */
  function drawProfile(panel) {
    const canvas = panel.profile;
    const context = canvas.getContext("2d");
    const count = state.volume.shape[0];
    // The slider's thumb stops half its width before the ends.
    const inset = 8 * panel.frame.ratio;
    const step = (canvas.width - 2 * inset) / Math.max(1, count - 1);
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (const { counts, colour } of state.profiles) {
      const most = Math.max(1, ...counts);
      context.fillStyle = colour;
      counts.forEach((value, index) => {
        const height = value ? Math.max(2, (value / most) * canvas.height) : 0;
        context.fillRect(inset + (index - 0.5) * step, canvas.height - height, Math.max(1, step), height);
      });
    }
    context.fillStyle = "#ffffff";
    context.fillRect(inset + state.position[0] * step - 1, 0, 2, canvas.height);
  }

  function measureProfiles() {
    const { volume } = state;
    const { reference, prediction } = volume;
    const labels = reference || prediction;
    state.profiles = labels
      ? classes.map(({ value }) => ({
          counts: profile(volume, 0, (i) => labels[i] === value),
          colour: `${content.task.colours[value]}66`,
          value,
        }))
      : [];
    const slices = [...Array(volume.shape[0]).keys()];
    for (const isReference of [true, false]) {
      const boxes = volume.boxes.filter((box) => (box.kind === "reference") === isReference);
      if (!boxes.length) continue;
      const counts = slices.map((z) => boxes.filter((box) => cuts(box, 0, z)).length);
      const { colour } = BOX_STYLES[isReference ? "reference" : "hit"];
      state.profiles.push({ counts, colour: `${colour}66` });
    }
    if (reference && prediction) {
      const counts = profile(volume, 0, (i) => reference[i] !== prediction[i]);
      state.differences = counts;
    } else {
      state.differences = null;
    }
  }

  /** Returns the score from which detections are drawn; the slider spans all cases. */
  function scoreFloor() {
    if (!scores.length) return -Infinity;
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const value = low + (Number(byId("score-threshold").value) / 1000) * (high - low);
    byId("score-threshold-value").textContent = formatNumber(value, 3);
    // The slider's end still shows the surest detection.
    return value - 1e-9 * Math.max(1, Math.abs(value));
  }

  function makeJumps() {
    const { volume, profiles } = state;
    const jumps = byId("jumps");
    jumps.replaceChildren();
    const add = (text, go) => addButton(jumps, text, go);
    const largest = (counts) => counts.indexOf(Math.max(...counts));
    for (const { counts, value } of profiles) {
      if (!value || !counts.some(Boolean)) continue;
      const name = content.task.classes[value];
      add(`Most ${name}`, () => goToLabel(value));
    }
    if (state.differences?.some(Boolean)) {
      add("Most differences", () => moveTo(0, largest(state.differences)));
    }
    add("Middle", () => {
      state.position = volume.shape.map((size) => size >> 1);
      draw();
    });
    const boxJumps = byId("box-jumps");
    boxJumps.replaceChildren();
    for (const box of volume.boxes) {
      addButton(boxJumps, `${box.kind === "reference" ? "Reference" : "Detection"}: ${box.text}`, () => goToBox(box));
    }
  }

  /** Goes to the slice that holds most of a label, and in it to the fullest row and column. */
  function goToLabel(value) {
    const { volume } = state;
    const labels = volume.reference || volume.prediction;
    const [, height, width] = volume.shape;
    let isInside = () => true;
    state.position = [0, 1, 2].map((axis) => {
      const counts = profile(volume, axis, (i) => labels[i] === value && isInside(i));
      const index = counts.indexOf(Math.max(...counts));
      const before = isInside;
      const indexOf = [
        (i) => Math.floor(i / (height * width)),
        (i) => Math.floor(i / width) % height,
        (i) => i % width,
      ][axis];
      isInside = (i) => before(i) && indexOf(i) === index;
      return index;
    });
    draw();
  }

  function goToBox(box) {
    const { shape } = state.volume;
    state.position = shape.map((size, axis) => {
      const middle = Math.round((box.low[axis] + box.high[axis]) / 2);
      return Math.max(0, Math.min(size - 1, middle));
    });
    draw();
  }

  /** Starts where there is something to see: a box, else the last class that has a voxel. */
  function goToContent() {
    const { volume, profiles } = state;
    state.position = volume.shape.map((size) => size >> 1);
    const found = profiles.filter(({ counts, value }) => value && counts.some(Boolean)).pop();
    if (volume.boxes.length) goToBox(volume.boxes[0]);
    else if (found) goToLabel(found.value);
    else draw();
  }

  function setWindow(width, centre) {
    state.window = { width, centre };
    for (const name of ["width", "centre"]) {
      const slider = byId(`window-${name}`);
      slider.value = state.window[name];
      byId(`window-${name}-value`).textContent = formatNumber(state.window[name], 0);
    }
    draw();
  }

  function makeWindowControls() {
    const { image } = state.volume;
    const [low, high] = content.task.window;
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
    const all = [...content.task.windows.map((each) => [each.name, each.range])];
    if (image) all.push(["Automatic", spread(image)]);
    for (const [name, range] of all) {
      addButton(presets, name, () => setWindow(range[1] - range[0], (range[0] + range[1]) / 2));
    }
    setWindow(high - low, (low + high) / 2);
  }

  function makeOverlayControls() {
    const { volume } = state;
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
    for (const each of classes) {
      const button = addButton(buttons, "", () => {
        each.on = !each.on;
        button.setAttribute("aria-pressed", each.on);
        draw();
      });
      button.setAttribute("aria-pressed", each.on);
      const swatch = addElement(button, "span", { class: "swatch" });
      swatch.style.borderColor = swatch.style.background = content.task.colours[each.value];
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

  async function open(index) {
    if (!content.cases[index]?.volume) return;
    const turn = ++state.opening;
    byId("case-choice").value = index;
    byId("loading").textContent = "decoding ...";
    const volume = await decodeCase(index, content.cases[index].volume);
    // Meanwhile another case may have been asked for.
    if (turn !== state.opening) return;
    Object.assign(state, { index, volume, ready: false });
    byId("loading").textContent = "";
    byId("case-note").textContent = content.cases[index].note;
    const facts = byId("case-facts");
    facts.replaceChildren();
    for (const [name, value] of content.cases[index].facts) {
      addElement(facts, "span", {}, `${name} ${value}`);
    }
    measureProfiles();
    layOut();
    makeJumps();
    makeOverlayControls();
    makeWindowControls();
    state.ready = true;
    goToContent();
    onOpen(index);
    document.body.dataset.open = index;
  }

  function step(by) {
    const next = shown.indexOf(state.index) + by;
    if (next >= 0 && next < shown.length) open(shown[next]);
  }

  const choice = byId("case-choice");
  for (const index of shown) addElement(choice, "option", { value: index }, content.cases[index].id);
  choice.addEventListener("change", () => open(Number(choice.value)));
  byId("previous-case").addEventListener("click", () => step(-1));
  byId("next-case").addEventListener("click", () => step(1));
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["width", "centre"]) {
    byId(`window-${name}`).addEventListener("input", () =>
      setWindow(Number(byId("window-width").value), Number(byId("window-centre").value)),
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
      draw();
    });
  }
  byId("projection-kind").value = content.projection_kind;
  byId("projection-kind").addEventListener("change", () => {
    for (const panel of panels) panel.cut = null;
    draw();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const toggle = (name, on) => {
      const slider = byId(`${name}-opacity`);
      slider.value = Number(slider.value) ? 0 : on;
      slider.dispatchEvent(new Event("input"));
    };
    const actions = {
      "[": () => step(-1),
      "]": () => step(1),
      r: () => toggle("reference", 100),
      p: () => toggle("prediction", 40),
      d: () => byId("differences").click(),
    };
    actions[event.key.toLowerCase()]?.();
  });
  window.addEventListener("resize", size);
  open(shown[0]);
  return { open, canOpen: (index) => shown.includes(index) };
}

/** Returns whether a box reaches into a slice. */
function cuts(box, axis, index) {
  return box.low[axis] < index + 0.5 && box.high[axis] > index - 0.5;
}

/** Returns the intensities below and above which 1 % of the values lie. */
function spread(values) {
  const step = Math.max(1, Math.floor(values.length / 20000));
  const sample = values.filter((_, i) => i % step === 0).sort();
  const at = (share) => sample[Math.min(sample.length - 1, Math.floor(share * sample.length))];
  const [low, high] = [at(0.01), at(0.995)];
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}
