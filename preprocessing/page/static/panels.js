// Creates the panels of a case and fits them to the screen at true proportions.

function makePanel(view, parent, { axis, isProjection, isMain, share }) {
  const figure = addElement(parent, "figure", { class: isMain ? "plane main" : "plane" });
  const caption = addElement(figure, "figcaption");
  const name = addElement(caption, "span");
  const place = addElement(caption, "span");
  const canvas = addElement(figure, "canvas", { class: "picture", tabindex: 0, role: "img" });
  const panel = { axis, isProjection, isMain, share, figure, canvas, name, place };
  canvas.addEventListener("click", (event) => goToClick(view, panel, event));
  if (isProjection) return panel;
  panel.slider = addElement(figure, "input", { type: "range", min: 0, step: 1 });
  panel.slider.addEventListener("input", () => moveTo(view, axis, Number(panel.slider.value)));
  if (isMain) panel.profile = addElement(figure, "canvas", { class: "profile" });
  const wheel = (event) => {
    event.preventDefault();
    moveTo(view, axis, view.position[axis] + Math.sign(event.deltaY));
  };
  canvas.addEventListener("wheel", wheel, { passive: false });
  canvas.addEventListener("keydown", (event) => moveByKey(view, axis, event));
  return panel;
}

/** Creates the panels of a case; the plane of the slices is the large one. */
function layOut(view) {
  const stage = byId("stage");
  stage.replaceChildren();
  view.panels.length = 0;
  const projectionAxis = view.content.projection_axis;
  view.panels.push(makePanel(view, stage, { axis: 0, isMain: true }));
  const others = [1, 2].map((axis) => ({ axis, share: 1 }));
  if (view.volume.image) {
    // Boxes are read on a projection across the slices: large, and next to the slice.
    const isFirst = projectionAxis === 0;
    const projection = { axis: projectionAxis, isProjection: true, share: isFirst ? 2.4 : 1 };
    others.splice(isFirst ? 0 : 2, 0, projection);
  }
  for (const each of others) view.panels.push(makePanel(view, stage, each));
  for (const panel of view.panels) {
    panel.geometry = planeGeometry(view.volume, panel.axis);
    if (panel.isProjection) {
      const { image } = view.volume;
      panel.cut = null;
      panel.labels = ["reference", "prediction"].map((name) => {
        const labels = view.volume[name];
        return labels && project(labels, view.volume, panel.geometry, "max");
      });
      panel.cutImage = () => project(image, view.volume, panel.geometry, byId("projection-kind").value);
    } else {
      panel.slider.max = view.volume.shape[panel.axis] - 1;
      panel.slider.setAttribute("aria-label", `${panel.geometry.name} slice`);
    }
  }
  sizePanels(view);
}

/** Fits every canvas to its panel, at the screen's resolution and the true aspect ratio. */
function sizePanels(view) {
  if (!view.volume) return;
  const ratio = window.devicePixelRatio || 1;
  const side = view.panels.filter((panel) => !panel.isMain);
  const shares = side.reduce((sum, panel) => sum + panel.share, 0);
  const tallest = Math.max(420, Math.min(860, window.innerHeight - 270));
  for (const panel of view.panels) {
    const width = panel.canvas.clientWidth;
    const { widthMm, heightMm } = panel.geometry;
    // Captions and sliders of the side panels need space too.
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
  draw(view);
}
