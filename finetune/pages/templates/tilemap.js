// a caption whose phrases highlight the tiles they come from: showTiles(data, caption, name of the slide)
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
    tiles.forEach((rect, i) => { rect.style.fillOpacity = found.heat ? found.heat[i] / 99 * 0.9 : 0; });
    part("note").replaceChildren(spoken(...sentence));
    part("most").textContent = found.heat ? percent(found.most) : "";
    Object.assign(shownMap, { heat: found.heat, text: found.text, most: found.most });
  }
  function add(box, found, kind, text, sentence) {
    const made = element("button", kind + (found.heat ? "" : " no_map"), text);
    made.type = "button";
    for (const event of ["pointerenter", "focus", "click"]) made.addEventListener(event, () => light(made, found, sentence));
    buttons.push(made);
    box.append(made);
    return made;
  }
  const nothing = { heat: null, text: "" }, words = element("div"), phrases = element("div");
  data.tokens.forEach((t, i) => { // a token is tested with its phrase, and has its map
    const p = `p(${t.text}) = ${percent(t.probability)}`, found = data.phrases.find(phrase => phrase.tokens.includes(i));
    add(words, found || nothing, "token", t.text, found ? tested(found).map(text => `${p} · ${text}`) : [p, p]);
  });
  const made = data.phrases.map(p => add(phrases, p, "phrase", p.text, tested(p)));
  part("caption").replaceChildren(words, phrases);
  part("most").textContent = "";
  part("note").textContent = "\u00a0";
  const first = data.phrases.findIndex(p => p.heat);
  if (first >= 0) light(made[first], data.phrases[first], tested(data.phrases[first]));

  tiles.forEach((rect, i) => rect.addEventListener("pointerenter", () => {
    const at = data.cells[i].map((cell, axis) => Math.round(data.origin[axis] + cell * data.step));
    const weight = shownMap.heat ? percent(shownMap.heat[i] / 99 * shownMap.most) : null;
    const where = data.known ? `(${at.join(", ")}) ${data.unit === "um" ? "µm" : "px"}` : `${say("第", "no.")} ${i + 1}`;
    part("place").textContent = where + (weight ? say(`：权重 ${weight}`, `: weight ${weight}`) : "");
  }));
}

// what the deletion test says of a phrase, in both languages
function tested(phrase) {
  const [zh, en] = phrase.no_map || ["", ""], c = phrase.chances;
  if (!c) return [`${phrase.text}：${zh}`, `${phrase.text}: ${en}`];
  const other = phrase.alternative ? [`而不是“${phrase.alternative}”`, `and not ${phrase.alternative}`] : ["而不是到此为止", "and not the end"];
  let texts = [`${phrase.text}，${other[0]}：${percent(c.log_odds)}`, `${phrase.text}, ${other[1]}: ${percent(c.log_odds)}`];
  if (c.without_top !== null) texts = [`${texts[0]}；去掉权重最高的 ${phrase.removed} 块后 ${percent(c.without_top)}`, `${texts[1]}; without its top ${phrase.removed} tiles ${percent(c.without_top)}`];
  if (c.without_random !== null) texts = [`${texts[0]}，随机去掉 ${phrase.removed} 块后 ${percent(c.without_random)}`, `${texts[1]}, without ${phrase.removed} random tiles ${percent(c.without_random)}`];
  return phrase.no_map ? [`${texts[0]}。${zh}`, `${texts[1]}. ${en[0].toUpperCase()}${en.slice(1)}`] : texts;
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
