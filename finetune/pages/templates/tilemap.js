// a caption whose tokens highlight the tiles they come from: showTiles(data, caption, name of the slide)
const part = id => document.getElementById(id);
function percent(share) {
  const text = (100 * share).toPrecision(3);
  return share < 1 && Number(text) === 100 ? "> 99.9 %" : Number(text) + " %";
}
let shownMap = null; // what the buttons save and copy

function svgElement(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function showTiles(data, caption, name) {
  const view = data.box || [-0.5, -0.5, data.columns + 1, data.rows + 1];
  const bar = data.known ? scaleBar(data, view) : null;
  const svg = svgElement("svg", { viewBox: [view[0], view[1], view[2], view[3] + (bar ? bar.height : 0)].join(" "), role: "img" });
  svg.setAttribute("aria-label", say("图块图", "map of the tiles"));
  if (data.picture) {
    const [x, y, width, height] = data.box;
    svg.append(svgElement("image", { x, y, width, height, href: data.picture, preserveAspectRatio: "none" }));
  }
  const tiles = data.cells.map(([x, y]) => svgElement("rect", { x, y, width: 1, height: 1, class: "tile" }));
  svg.append(...tiles);
  if (bar) svg.append(...bar.parts);
  part("map").replaceChildren(svg);
  part("unplaced").hidden = data.known;
  part("scale").hidden = false;
  part("place").textContent = "\u00a0";
  shownMap = { data, view, caption, name, heat: null, text: "" };

  const buttons = [];
  function light(button, found, sentence) {
    buttons.forEach(b => b.classList.toggle("lit", b === button));
    tiles.forEach((rect, i) => { rect.style.fillOpacity = found.heat[i] / 99 * 0.9; });
    part("note").replaceChildren(spoken(...sentence));
    part("most").textContent = percent(found.most);
    Object.assign(shownMap, { heat: found.heat, text: found.text, most: found.most });
  }
  function add(box, found, kind, sentence) {
    const made = element("button", kind, found.text);
    made.type = "button";
    for (const event of ["pointerenter", "focus", "click"]) made.addEventListener(event, () => light(made, found, sentence));
    buttons.push(made);
    box.append(made);
  }
  const words = element("div"), phrases = element("div");
  data.tokens.forEach(t => add(words, t, "token", [`p(${t.text}) = ${percent(t.probability)}`, `p(${t.text}) = ${percent(t.probability)}`]));
  data.phrases.forEach(p => add(phrases, p, "phrase", tested(p)));
  part("caption").replaceChildren(words, phrases);
  part("most").textContent = "";
  part("note").textContent = "\u00a0";

  tiles.forEach((rect, i) => rect.addEventListener("pointerenter", () => {
    const at = data.cells[i].map((cell, axis) => Math.round(data.origin[axis] + cell * data.step));
    const weight = shownMap.heat ? percent(shownMap.heat[i] / 99 * shownMap.most) : null;
    const where = data.known ? `(${at.join(", ")}) ${data.unit === "um" ? "µm" : "px"}` : `${say("第", "no.")} ${i + 1}`;
    part("place").textContent = where + (weight ? say(`：权重 ${weight}`, `: weight ${weight}`) : "");
  }));
}

function tested(phrase) {
  const t = phrase.test, begin = `${phrase.text}: ${percent(t.probability)}`;
  if (t.holds === null) return [begin, begin];
  return [
    `${begin}；去掉权重最高的 ${t.removed} 块后 ${percent(t.without_top)}，随机去掉 ${t.removed} 块后 ${percent(t.without_random)}${t.holds ? "" : "（删除检验不成立：这张图不可信）"}`,
    `${begin}; without its top ${t.removed} tiles ${percent(t.without_top)}, without ${t.removed} random tiles ${percent(t.without_random)}${t.holds ? "" : " (the deletion test fails: do not trust this map)"}`];
}

// a bar of 1, 2 or 5 times a power of ten, at most a third of the width, below the map
function scaleBar(data, view) {
  const most = view[2] * data.step / 3, power = 10 ** Math.floor(Math.log10(most));
  const length = [5, 2, 1].map(factor => factor * power).find(value => value <= most) || power;
  const width = length / data.step, size = view[2] / 40, top = view[1] + view[3] + size * 0.5;
  const label = svgElement("text", { x: view[0] + width + size / 2, y: top + size, class: "scale_text" });
  label.style.fontSize = `${size * 1.3}px`;
  label.textContent = data.unit === "um" ? length >= 1000 ? `${length / 1000} mm` : `${length} µm` : `${length} px`;
  return { height: size * 2, parts: [svgElement("rect", { x: view[0], y: top + size * 0.4, width, height: size * 0.35, class: "scale_bar" }), label] };
}

function download(name, blob) {
  const link = element("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// the map as a PNG: its picture or grey tiles, and the weights of what is selected
async function saveMap() {
  const { data, view, heat, name, text } = shownMap, pixels = Math.max(1, Math.min(24, Math.floor(2000 / Math.max(view[2], view[3]))));
  const canvas = Object.assign(element("canvas"), { width: Math.ceil(view[2] * pixels), height: Math.ceil(view[3] * pixels) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (data.picture) {
    const picture = Object.assign(new Image(), { src: data.picture });
    await picture.decode();
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  }
  data.cells.forEach(([x, y], i) => {
    const place = [(x - view[0]) * pixels, (y - view[1]) * pixels, pixels, pixels];
    if (!data.picture) {
      context.fillStyle = "#dee2e6";
      context.fillRect(...place);
    }
    context.fillStyle = `rgba(214, 73, 20, ${heat ? heat[i] / 99 * 0.9 : 0})`;
    context.fillRect(...place);
  });
  canvas.toBlob(blob => download(`${name}${text ? " " + text : ""}.png`.replace(/[\\/:*?"<>|\n]/g, "_"), blob));
}
part("save_map").addEventListener("click", () => shownMap && saveMap());
part("copy").addEventListener("click", async () => {
  const done = await copyText(shownMap ? shownMap.caption : part("plain").textContent);
  part("copied").replaceChildren(done ? spoken("已复制", "copied") : spoken("浏览器不允许复制", "the browser does not allow it"));
});
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // a page opened as a file may have no clipboard
    const box = element("textarea", "", text);
    document.body.append(box);
    box.select();
    const done = document.execCommand("copy");
    box.remove();
    return done;
  }
}
