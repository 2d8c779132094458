// Elements, buttons and numbers. Texts are always set as text content, never as HTML.

function byId(id) {
  return document.getElementById(id);
}

function addElement(parent, tag, attributes = {}, text = "") {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== "") element.textContent = text;
  parent.append(element);
  return element;
}

function addButton(parent, text, action) {
  const button = addElement(parent, "button", { type: "button" }, text);
  button.addEventListener("click", action);
  return button;
}

/** Returns a number with that many digits after the point; a dash for undefined values. */
function formatNumber(value, digits) {
  if (value === null || value === undefined) return "\u2013";
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
