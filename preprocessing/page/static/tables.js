// Tables that sort by a click on a column's header.

/** Adds a table; rows that belong to a case open it. Returns {mark(case index)}. */
function addTable(parent, table, viewer) {
  const section = addElement(parent, "section");
  const heading = addElement(section, "h2", { id: table.id }, table.title);
  if (table.note) addElement(section, "p", { class: "note" }, table.note);
  const scroll = addElement(section, "div", { class: "scroll", tabindex: 0 });
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-labelledby", heading.id);
  const element = addElement(scroll, "table");
  const head = addElement(addElement(element, "thead"), "tr");
  const body = addElement(element, "tbody");
  const rows = table.rows.map((row) => ({ ...row, element: makeRow(row, table.columns, viewer) }));
  const headers = table.columns.map((column, number) => {
    const isNumber = column.digits !== null;
    const header = addElement(head, "th", { scope: "col", class: isNumber ? "number" : "" });
    if (column.help) header.title = column.help;
    addButton(header, column.name, () => sortBy(number));
    return header;
  });
  const show = (sorted) => body.replaceChildren(...sorted.map((row) => row.element));
  show(rows);

  function sortBy(number) {
    const before = headers[number].getAttribute("aria-sort");
    const direction = before === "ascending" ? "descending" : "ascending";
    for (const header of headers) header.removeAttribute("aria-sort");
    headers[number].setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    show([...rows].sort((a, b) => compare(a.cells[number], b.cells[number], sign)));
  }

  return {
    mark(index) {
      for (const row of rows) row.element.classList.toggle("open", row.case === index);
    },
  };
}

/** Orders numbers and texts; what is undefined comes last whichever way. */
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function makeRow(row, columns, viewer) {
  const element = document.createElement("tr");
  row.cells.forEach((value, number) => {
    const { digits, wide } = columns[number];
    const text = digits === null ? (value ?? "\u2013") : formatNumber(value, digits);
    const cell = addElement(element, "td", { class: digits === null ? "" : "number" });
    if (wide) cell.className = "wide";
    if (value === "error" || value === "warning") cell.className = value;
    if (number === 0 && row.case !== null && viewer.canOpen(row.case)) {
      addButton(cell, text, () => {
        viewer.open(row.case);
        byId("viewer").scrollIntoView();
      });
    } else {
      cell.textContent = text;
    }
  });
  return element;
}
