// the table of captions: its rows come deflated, one page of them is drawn at a time
const ROWS_PER_PAGE = 50;
const table = document.getElementById("rows"), view = { sort: "score", descending: false, page: 0, rows: [], open: new Set() };
const control = id => document.getElementById(id);

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

// Latin words, numbers and single Chinese characters: what is compared
const tokens = text => text.match(/[A-Za-z\u00c0-\u024f]+|\d+(?:\.\d+)?|\s+|[^]/gu) || [];

// the longest common sequence of two lists: [whether each token of a is in it, of b, its length]
function common(a, b) {
  const width = b.length + 1, length = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      length[i * width + j] = a[i] === b[j] ? length[(i + 1) * width + j + 1] + 1
        : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
  }
  const inA = a.map(() => false), inB = b.map(() => false);
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) inA[i++] = inB[j++] = true;
    else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) i++;
    else j++;
  }
  return [inA, inB, length[0]];
}
function marked(words, isCommon, className) {
  const line = document.createDocumentFragment();
  for (let i = 0; i < words.length;) {
    let end = i;
    while (end < words.length && isCommon[end] === isCommon[i]) end++;
    const text = words.slice(i, end).join("");
    line.append(isCommon[i] ? text : element("mark", className, text));
    i = end;
  }
  return line;
}

function start(data) {
  const lower = data.texts.map(text => text.toLowerCase());
  const scoreOf = () => data.scores[Number(control("score").value)];
  const scoreName = () => scoreOf()?.name ?? ["分数", "score"];
  const shown = value => value === null || value === undefined ? "–" : String(Number(value.toPrecision(3)));

  function matches(row, words, topic, which) {
    if (topic >= 0 && !data.wrong[row].includes(topic)) return false;
    if (which === "wrong" && data.right[row] || which === "right" && !data.right[row] || which === "cut" && !data.cut[row]) return false;
    return !words || data.ids[row].toLowerCase().includes(words) || lower[data.captions[row]].includes(words)
      || data.references[row].some(text => lower[text].includes(words));
  }
  function key(row) {
    const value = view.sort === "score" ? scoreOf()?.values[row] : data.confidence[row];
    return value ?? -1; // what has no score comes with the worst
  }
  function select() {
    const words = control("find").value.trim().toLowerCase(), topic = Number(control("topic").value), which = control("which").value;
    view.rows = data.ids.map((_, row) => row).filter(row => matches(row, words, topic, which));
    const way = view.descending ? -1 : 1;
    if (view.sort === "id") view.rows.sort((a, b) => way * (data.ids[a] < data.ids[b] ? -1 : 1));
    else view.rows.sort((a, b) => way * (key(a) - key(b)) || a - b);
    view.page = 0;
    draw();
  }

  function draw() {
    const pages = Math.max(1, Math.ceil(view.rows.length / ROWS_PER_PAGE)), first = view.page * ROWS_PER_PAGE;
    table.tBodies[0].replaceChildren(...view.rows.slice(first, first + ROWS_PER_PAGE).map(drawRow));
    control("page").textContent = `${view.page + 1} / ${pages}`;
    control("previous").disabled = view.page === 0;
    control("following").disabled = view.page + 1 >= pages;
    document.querySelector(".pager").hidden = pages === 1;
    control("found").textContent = say(`${view.rows.length} / ${data.ids.length} 条`, `${view.rows.length} of ${data.ids.length}`);
    control("score_name").replaceChildren(spoken(...scoreName()));
    for (const head of table.querySelectorAll("th button")) {
      const is = head.dataset.sort === view.sort;
      head.parentElement.setAttribute("aria-sort", is ? view.descending ? "descending" : "ascending" : "none");
    }
  }
  function drawRow(row) {
    const caption = tokens(data.texts[data.captions[row]]);
    const pairs = data.references[row].map(text => {
      const words = tokens(data.texts[text]), [inCaption, inText, length] = common(caption, words);
      return { words, inCaption, inText, likeness: 2 * length / Math.max(1, caption.length + words.length) };
    });
    const near = pairs.reduce((a, b) => a.likeness >= b.likeness ? a : b), others = pairs.length - 1;
    const line = document.createElement("tr"), texts = element("td", "texts");
    const first = element("p"), second = element("p", "reference");
    first.append(marked(caption, near.inCaption, "extra"), data.cut[row] ? " ✂" : "");
    if (data.right[row]) {
      const same = element("span", "soft", " = ");
      same.append(spoken("参考", "reference"));
      first.append(same);
    } else {
      second.append(marked(near.words, near.inText, "miss"));
    }
    if (others) second.append(element("span", "soft", ` (+${others})`));
    texts.append(first, ...(second.hasChildNodes() ? [second] : []));
    if (data.unusual[row]) {
      const why = element("p", "alert", "⚠ "), [chinese, english] = data.unusual[row];
      why.append(spoken("异常切片：" + chinese, "Unusual slide: " + english));
      texts.append(why);
    }
    const more = button("link", "全部分数", "all scores");
    more.setAttribute("aria-expanded", view.open.has(row));
    more.addEventListener("click", () => {
      view.open.has(row) ? view.open.delete(row) : view.open.add(row);
      const redrawn = drawRow(row);
      line.replaceWith(redrawn);
      redrawn.querySelector("button").focus();
    });
    texts.append(more);
    if (view.open.has(row)) texts.append(details(row));
    line.append(element("td", "id", data.ids[row]), texts, value(say(...scoreName()), scoreOf()?.values[row]),
                value(say("置信度", "confidence"), data.confidence[row]));
    return line;
  }
  function value(name, number) {
    const made = element("td", "value", shown(number));
    made.dataset.name = name; // shown where the table has no columns, on a phone
    return made;
  }
  function details(row) {
    const box = element("dl", "scores");
    for (const score of data.scores) {
      const name = element("dt"), value = element("dd", "", shown(score.values[row]));
      name.append(spoken(...score.name));
      name.title = say(...score.note);
      box.append(name, value);
    }
    if (data.wrong[row].length) {
      const name = element("dt"), value = element("dd");
      name.append(spoken("写错的项", "wrong in"));
      value.append(spoken(...[0, 1].map(i => data.wrong[row].map(topic => data.topics[topic][i]).join(" · "))));
      box.append(name, value);
    }
    return box;
  }

  function options() {
    const counts = data.topics.map((_, topic) => data.wrong.filter(list => list.includes(topic)).length);
    data.topics.forEach(([zh, en], topic) => counts[topic] && addOption("topic", topic, `${zh}（${counts[topic]}）`, `${en} (${counts[topic]})`));
    data.scores.forEach((score, number) => addOption("score", number, ...score.name));
    control("score").value = data.first;
    control("topic").parentElement.hidden = control("topic").length === 1;
    control("score").parentElement.hidden = data.scores.length < 2;
  }
  function addOption(id, value, zh, en) {
    const made = element("option", "", say(zh, en));
    Object.assign(made.dataset, { zh, en });
    made.value = value;
    control(id).append(made);
  }
  function turn(by) {
    view.page += by;
    draw();
    table.scrollIntoView();
  }

  options();
  for (const id of ["find", "topic", "which"]) control(id).addEventListener("input", select);
  control("score").addEventListener("input", () => {
    view.sort = "score";
    view.descending = scoreOf().better === "lower";
    select();
  });
  for (const head of table.querySelectorAll("th button")) head.addEventListener("click", () => {
    view.descending = view.sort === head.dataset.sort && !view.descending;
    view.sort = head.dataset.sort;
    select();
  });
  control("previous").addEventListener("click", () => turn(-1));
  control("following").addEventListener("click", () => turn(1));
  document.addEventListener("language", draw);
  select();
}
if (table) {
  unpack(control("packed").textContent).then(start).catch(error => {
    control("found").textContent = say(`这个浏览器太旧，显示不了描述（${error.message}）`, `This browser is too old for the captions (${error.message})`);
  });
}
