// Box plots, curves and scatter plots as SVG. Their points are cases, which they open.

const CHART = { width: 480, height: 320, left: 58, right: 16, top: 14, bottom: 46 };
const SVG = "http://www.w3.org/2000/svg";

/** Adds a chart; returns {mark(case index)}. */
function addChart(parent, chart, cases, viewer) {
  const figure = addElement(parent, "figure", { class: "chart" });
  const heading = addElement(figure, "h3", {}, chart.title);
  const svg = addSvg(figure, "svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "group" });
  heading.id = `chart-${parent.children.length}`;
  svg.setAttribute("aria-labelledby", heading.id);
  if (chart.note) addElement(figure, "p", { class: "note" }, chart.note);
  const points = [];
  const draw = { box: drawBoxPlot, lines: drawLines, scatter: drawScatter }[chart.kind];
  draw(svg, chart, (x, y, value, index, colour) => {
    const point = addSvg(svg, "circle", { cx: x, cy: y, r: 4.2, fill: colour, class: "point" });
    addSvg(point, "title", {}, `${cases[index].id}: ${value}`);
    points.push({ point, index });
    if (!viewer.canOpen(index)) return;
    point.setAttribute("tabindex", 0);
    point.setAttribute("role", "button");
    point.setAttribute("aria-label", `${cases[index].id}: ${value}`);
    const open = () => viewer.open(index);
    point.addEventListener("click", open);
    point.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open();
      }
    });
  });
  return {
    mark(index) {
      for (const each of points) each.point.classList.toggle("open", each.index === index);
    },
  };
}

function addSvg(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== "") element.textContent = text;
  parent.append(element);
  return element;
}

/** Returns the place of a value between two pixels. */
function scaleOf([low, high], from, to) {
  return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
}

/** Returns about five round values that span a range. */
function ticksOf([low, high]) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) {
    ticks.push(Number(tick.toPrecision(12)));
  }
  return ticks;
}

/** Returns a range that holds all values, or the axis' own where it has one. */
function rangeOf(axis, values) {
  if (axis.range) return axis.range;
  const high = Math.max(...values, 0);
  const low = Math.min(...values, 0);
  const ticks = ticksOf([low, high > low ? high : low + 1]);
  const step = ticks[1] - ticks[0];
  const top = ticks[ticks.length - 1];
  return [Math.min(low, ticks[0]), top >= high ? top : top + step];
}

function drawYAxis(svg, axis, range) {
  const { width, height, left, right, top, bottom } = CHART;
  const y = scaleOf(range, height - bottom, top);
  for (const tick of ticksOf(range)) {
    addSvg(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) });
    addSvg(svg, "text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toLocaleString("en"));
  }
  addSvg(svg, "line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom });
  const middle = (top + height - bottom) / 2;
  const turned = { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" };
  addSvg(svg, "text", turned, axis.title);
  return y;
}

function drawXAxis(svg, axis, range) {
  const { width, height, left, right, bottom } = CHART;
  const x = scaleOf(range, left, width - right);
  for (const tick of ticksOf(range)) {
    const place = { x: x(tick), y: height - bottom + 17, "text-anchor": "middle" };
    addSvg(svg, "text", place, tick.toLocaleString("en"));
  }
  const y = height - bottom;
  addSvg(svg, "line", { class: "axis", x1: left, x2: width - right, y1: y, y2: y });
  const middle = (left + width - right) / 2;
  addSvg(svg, "text", { x: middle, y: height - 8, "text-anchor": "middle" }, axis.title);
  return x;
}

/** Returns the value below which a share of sorted values lies, straight between neighbours. */
function quantileOf(sorted, share) {
  const place = (sorted.length - 1) * share;
  const below = Math.floor(place);
  const above = Math.min(sorted.length - 1, below + 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

/** Boxes from quartile to quartile with the median; whiskers to the last value within 1.5 boxes. */
function drawBoxPlot(svg, chart, addPoint) {
  const { width, height, left, right, bottom } = CHART;
  const all = chart.groups.flatMap((group) => group.values.map(([value]) => value));
  const y = drawYAxis(svg, chart.y, rangeOf(chart.y, all));
  const room = (width - left - right) / chart.groups.length;
  const base = height - bottom;
  addSvg(svg, "line", { class: "axis", x1: left, x2: width - right, y1: base, y2: base });
  chart.groups.forEach((group, number) => {
    const middle = left + (number + 0.5) * room;
    const half = Math.min(34, room * 0.3);
    addSvg(svg, "text", { x: middle, y: base + 17, "text-anchor": "middle" }, group.name);
    const count = `n = ${group.values.length}`;
    addSvg(svg, "text", { x: middle, y: base + 33, "text-anchor": "middle" }, count);
    if (!group.values.length) return;
    const sorted = group.values.map(([value]) => value).sort((a, b) => a - b);
    const [first, median, third] = [0.25, 0.5, 0.75].map((share) => quantileOf(sorted, share));
    const reach = 1.5 * (third - first);
    const inside = sorted.filter((value) => value >= first - reach && value <= third + reach);
    const [low, high] = [inside[0], inside[inside.length - 1]];
    const line = (x1, y1, x2, y2, thick = 1.4) =>
      addSvg(svg, "line", { x1, y1, x2, y2, stroke: group.colour, "stroke-width": thick });
    line(middle, y(low), middle, y(first));
    line(middle, y(third), middle, y(high));
    for (const end of [low, high]) line(middle - half / 2, y(end), middle + half / 2, y(end));
    addSvg(svg, "rect", {
      class: "box",
      x: middle - half,
      y: y(third),
      width: 2 * half,
      height: Math.max(0.5, y(first) - y(third)),
      fill: group.colour,
      stroke: group.colour,
    });
    line(middle - half, y(median), middle + half, y(median), 3);
    group.values.forEach(([value, index], place) => {
      // Golden steps spread neighbours without chance.
      const aside = (((place * 0.618034) % 1) - 0.5) * half * 1.4;
      const text = `${group.name} ${formatNumber(value, chart.digits)}`;
      addPoint(middle + aside, y(value), text, index, group.colour);
    });
  });
}

function drawLines(svg, chart) {
  const { width, right, top } = CHART;
  const points = chart.series.flatMap((series) => series.points);
  const x = drawXAxis(svg, chart.x, rangeOf(chart.x, points.map(([value]) => value)));
  const y = drawYAxis(svg, chart.y, rangeOf(chart.y, points.map(([, value]) => value)));
  chart.series.forEach((series, number) => {
    const places = series.points.map(([a, b]) => `${x(a).toFixed(2)},${y(b).toFixed(2)}`);
    const dash = series.dash ? { "stroke-dasharray": series.dash } : {};
    const line = { class: "curve", points: places.join(" "), stroke: series.colour, ...dash };
    addSvg(addSvg(svg, "polyline", line), "title", {}, series.name);
    const row = chart.legend_low ? CHART.height - CHART.bottom - 14 - 18 * number : top + 8 + 18 * number;
    const end = width - right;
    const name = { x: end - 34, y: row + 4, "text-anchor": "end" };
    addSvg(svg, "line", { x1: end - 28, x2: end, y1: row, y2: row, class: "curve", stroke: series.colour, ...dash });
    addSvg(svg, "text", name, series.name);
  });
}

function drawScatter(svg, chart, addPoint) {
  const values = chart.points.flatMap(([a, b]) => [a, b]);
  const range = rangeOf(chart.x, values);
  const x = drawXAxis(svg, chart.x, range);
  const y = drawYAxis(svg, chart.y, range);
  const [low, high] = range;
  addSvg(svg, "line", { class: "axis", x1: x(low), y1: y(low), x2: x(high), y2: y(high), "stroke-dasharray": "5 5" });
  for (const [a, b, index] of chart.points) {
    const text = `${chart.x.title} ${formatNumber(a, chart.digits)}, ${chart.y.title} ${formatNumber(b, chart.digits)}`;
    addPoint(x(a), y(b), text, index, chart.colour);
  }
}
