// a caption whose tokens highlight the tiles they come from
function showTiles(data, captionBox, mapBox, note) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  const view = data.box || [-0.5, -0.5, data.columns + 1, data.rows + 1];
  svg.setAttribute("viewBox", view.join(" "));
  svg.setAttribute("role", "img");
  if (data.picture) {
    const image = document.createElementNS(ns, "image");
    for (const [i, name] of ["x", "y", "width", "height"].entries()) image.setAttribute(name, data.box[i]);
    image.setAttribute("href", data.picture);
    image.setAttribute("preserveAspectRatio", "none");
    svg.append(image);
  }
  const tiles = data.cells.map(([x, y]) => {
    const rect = document.createElementNS(ns, "rect");
    for (const [name, value] of Object.entries({ x, y, width: 1, height: 1, class: "tile" })) rect.setAttribute(name, value);
    svg.append(rect);
    return rect;
  });
  mapBox.replaceChildren(svg);
  const buttons = [];
  function light(button, heat, text) {
    buttons.forEach(b => b.classList.toggle("lit", b === button));
    tiles.forEach((rect, i) => { rect.style.fillOpacity = heat[i] / 99 * 0.9; });
    note.textContent = text;
  }
  function add(box, text, kind, heat, say) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = kind;
    button.textContent = text;
    for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, () => light(button, heat, say));
    buttons.push(button);
    box.append(button);
  }
  const percent = p => Number((100 * p).toPrecision(5)) + " %";
  const words = document.createElement("div"), parts = document.createElement("div");
  data.tokens.forEach(t => add(words, t.text, "token", t.heat, `p(${t.text}) = ${percent(t.probability)}`));
  data.phrases.forEach(p => {
    const t = p.test;
    const zh = root.dataset.lang !== "en";
    const tested = t.holds === null ? "" : zh
      ? `；去掉权重最高的 ${t.removed} 块后 ${percent(t.without_top)}，随机去掉 ${t.removed} 块后 ${percent(t.without_random)}${t.holds ? "" : "（删除检验不成立：这张图不可信）"}`
      : `; without its top ${t.removed} tiles ${percent(t.without_top)}, without ${t.removed} random tiles ${percent(t.without_random)}${t.holds ? "" : " (the deletion test fails: do not trust this map)"}`;
    add(parts, p.text, "phrase", p.heat, `${p.text}: ${percent(t.probability)}${tested}`);
  });
  captionBox.replaceChildren(words, parts);
}
const explained = document.getElementById("explanation");
if (explained) {
  showTiles(JSON.parse(explained.textContent), document.getElementById("caption"), document.getElementById("map"),
            document.getElementById("note"));
}
