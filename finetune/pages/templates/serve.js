// the page to try a model: slides are sent one after the other, each answer is a row of the table
const drop = part("drop"), state = part("status"), suffixes = drop.dataset.suffixes.split(",");
let jobs = [], chosen = null, running = null; // chosen: the job that is shown; running: the request on its way

function tell(zh, en, isAlert) {
  state.className = isAlert ? "alert" : "soft";
  state.replaceChildren(spoken(zh, en));
}
const megabytes = bytes => (bytes / 1e6).toPrecision(3) + " MB";

function choose(files) {
  if (running) return;
  jobs = [...files].map(file => ({ file, name: visible(file.name), answer: null, error: null }));
  chosen = null;
  part("run").disabled = jobs.length === 0;
  part("answer").hidden = true;
  const bytes = jobs.reduce((sum, job) => sum + job.file.size, 0);
  tell(`${jobs.length} 个文件，${megabytes(bytes)}`, `${jobs.length} files, ${megabytes(bytes)}`);
  draw();
}

// what the server could only say after gigabytes have been sent
function fault(file) {
  if (!suffixes.some(suffix => file.name.toLowerCase().endsWith(suffix))) return [`文件名应以 ${suffixes.join("、")} 结尾`, `its name must end in ${suffixes.join(", ")}`];
  if (file.size > Number(drop.dataset.mostBytes)) return [`${megabytes(file.size)}，太大：请改用命令行`, `${megabytes(file.size)} is too large: use the command line`];
  return null;
}

function send(job, texts, onProgress) {
  return new Promise(resolve => {
    const request = new XMLHttpRequest(); // fetch cannot say how much of an upload has gone
    const failed = (zh, en) => resolve({ error: [zh, en] });
    request.open("POST", "/describe");
    request.responseType = "json";
    request.setRequestHeader("x-prism-coca", "1");
    request.setRequestHeader("x-suffix", suffixes.find(suffix => job.file.name.toLowerCase().endsWith(suffix)));
    // a header takes ASCII only
    request.setRequestHeader("x-texts", JSON.stringify(texts).replace(/[\u0080-\uffff]/g, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0")));
    request.upload.addEventListener("progress", event => onProgress(event.loaded / Math.max(1, event.total)));
    request.addEventListener("load", () => request.response ? resolve(request.response) : failed("程序没有回答", "the program gave no answer"));
    request.addEventListener("error", () => failed("程序已停止？连接不上", "the program cannot be reached: has it ended?"));
    request.addEventListener("abort", () => failed("已停止", "stopped"));
    request.send(job.file);
    running = request;
  });
}

async function run() {
  const texts = part("texts").value.split("\n");
  busy(true);
  tell("正在处理", "working");
  for (const job of jobs) Object.assign(job, { answer: null, error: null });
  chosen = null;
  part("answer").hidden = true;
  draw();
  for (const [number, job] of jobs.entries()) {
    job.error = fault(job.file);
    if (!job.error) {
      const begin = Date.now();
      let sent = 0;
      const show = () => progress(number, job, sent, Math.round((Date.now() - begin) / 1000));
      const clock = setInterval(show, 500);
      show();
      const found = await send(job, texts, share => { sent = share; show(); });
      clearInterval(clock);
      if (found.error) job.error = found.error;
      else job.answer = found;
    }
    if (job.answer && !chosen) select(job);
    else draw();
    if (!running) break;
  }
  const done = jobs.filter(job => job.answer).length, failed = jobs.filter(job => job.error).length;
  busy(false);
  draw();
  tell(`完成 ${done} 个${failed ? `，${failed} 个不能用` : ""}`, `${done} done${failed ? `, ${failed} cannot be used` : ""}`, failed > 0);
}
function progress(number, job, sent, seconds) {
  const what = sent < 1 ? [`上传 ${Math.round(100 * sent)} %`, `sending ${Math.round(100 * sent)} %`] : ["正在描述和解释", "captioning and explaining"];
  part("working").replaceChildren(spoken(`${number + 1} / ${jobs.length} ${job.name}：${what[0]}，${seconds} 秒`,
                                         `${number + 1} / ${jobs.length} ${job.name}: ${what[1]}, ${seconds} s`));
  part("progress").max = jobs.length;
  part("progress").value = number + sent / 2;
}
function busy(is) {
  running = is ? {} : null;
  for (const id of ["stop", "progress", "working"]) part(id).hidden = !is;
  for (const id of ["run", "file"]) part(id).disabled = is;
  for (const id of ["save_csv", "save_jsonl"]) part(id).disabled = is || !jobs.some(job => job.answer);
}

function draw() {
  part("results").hidden = jobs.length === 0;
  document.querySelector("#slides tbody").replaceChildren(...jobs.map(job => {
    const row = element("tr"), name = element("td"), caption = element("td"), confidence = element("td");
    if (job.answer) {
      const open = element("button", "link", job.name);
      open.type = "button";
      open.addEventListener("click", () => {
        select(job);
        document.querySelector("#slides .chosen button").focus(); // its row was drawn anew
      });
      name.append(open);
      caption.textContent = job.answer.caption + (job.answer.finished ? "" : " ✂");
      if (job.answer.unusual) caption.append(" ", element("span", "alert", "⚠"));
      confidence.textContent = percent(job.answer.confidence);
    } else {
      name.textContent = job.name;
      if (job.error) {
        caption.className = "alert";
        caption.append(spoken(...job.error));
      } else {
        caption.append(running ? "…" : "");
      }
    }
    row.append(name, caption, confidence);
    row.classList.toggle("chosen", job === chosen);
    return row;
  }));
}
function fill(id, rows) {
  part(id + "_box").hidden = rows.length === 0;
  part(id).replaceChildren(...rows.map(([text, value]) => {
    const row = element("tr");
    row.append(element("td", "", value.toFixed(4)), element("td", "", text));
    return row;
  }));
}
function select(job) {
  const found = job.answer;
  chosen = job;
  draw();
  part("file_name").textContent = job.name;
  part("plain").textContent = found.caption;
  part("cut").hidden = found.finished;
  part("unusual").hidden = !found.unusual;
  if (found.unusual) part("unusual").replaceChildren(spoken("异常切片：" + found.unusual_words[0], "Unusual slide: " + found.unusual_words[1]));
  part("confidence").textContent = percent(found.confidence);
  part("tiles").textContent = found.tiles;
  fill("fields", Object.entries(found.fields).map(([name, field]) => [`${name}：${field.value ?? "–"}`, field.probability]));
  fill("scores", found.scores);
  fill("nearest", found.nearest);
  part("map_box").hidden = !found.map;
  part("no_map").hidden = Boolean(found.map);
  part("answer").hidden = false;
  part("thumbnail").value = "";
  part("thumbnail_state").replaceChildren();
  if (found.map) drawMap();
  else part("no_map").replaceChildren(spoken(...found.why_no_map));
}

// --- a picture of the slide below its tiles: it stays in the browser
function drawMap() {
  part("thumbnail_box").hidden = !chosen.answer.map.known; // without coordinates there is no place for it
  showTiles(chosen.answer.map, chosen.answer.caption, chosen.name.replace(/\.[^.]*$/, ""));
}
function placed(zh, en, isAlert) {
  part("thumbnail_state").className = isAlert ? "alert" : "soft";
  part("thumbnail_state").replaceChildren(spoken(zh, en));
}

// the picture's corner is the origin of the coordinates, as for inference.py --thumbnail; in units of grid cells
function boxOf(data, size, given) {
  const ends = [data.columns, data.rows].map((cells, axis) => data.origin[axis] + cells * data.step);
  const scale = given || Math.max(ends[0] / size[0], ends[1] / size[1]);
  const last = ends.map(end => (end - data.step) / scale); // where the last tiles begin
  if (last[0] > size[0] || last[1] > size[1]) return null;
  return [-data.origin[0] / data.step, -data.origin[1] / data.step, size[0] * scale / data.step, size[1] * scale / data.step];
}

async function placeThumbnail() {
  const file = part("thumbnail").files[0], job = chosen, given = Number(part("thumbnail_scale").value);
  if (!file) return;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    placed("不是可用的 PNG 或 JPEG", "not a usable PNG or JPEG", true);
    return;
  }
  const box = boxOf(job.answer.map, [bitmap.width, bitmap.height], given);
  if (!box) {
    placed("按这个比例，图块会落在缩略图之外", "at this scale tiles would lie outside the thumbnail", true);
    return;
  }
  const shrink = Math.min(1, 1024 / Math.max(bitmap.width, bitmap.height)); // the page draws it no larger
  const canvas = Object.assign(element("canvas"), { width: Math.max(1, Math.round(bitmap.width * shrink)), height: Math.max(1, Math.round(bitmap.height * shrink)) });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  Object.assign(job.answer.map, { picture: canvas.toDataURL("image/jpeg", 0.8), box });
  if (job !== chosen) return; // another slide was opened meanwhile
  drawMap();
  if (given) placed("", "");
  else placed("假定缩略图到最后一个图块为止；不是这样就填比例", "assuming that the thumbnail ends where the tiles end: if not, give the scale");
}
for (const id of ["thumbnail", "thumbnail_scale"]) part(id).addEventListener("change", placeThumbnail);

// records as inference.py --output writes them
function record(job) {
  const found = job.answer;
  return { id: job.name.replace(/\.[^.]*$/, ""), caption: found?.caption ?? null, similarity: Object.fromEntries(found?.scores ?? []),
           confidence: found?.confidence ?? null, finished: found?.finished ?? null, error: job.error ? job.error[1] : null,
           ...(typeof found?.unusual === "boolean" ? { unusual: found.unusual } : {}), ...(found?.unusual ? { unusual_reason: found.unusual_reason } : {}),
           ...(Object.keys(found?.fields ?? {}).length ? { fields: found.fields } : {}) };
}
const done = () => jobs.filter(job => job.answer || job.error).map(record);
function cell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const harmless = typeof value === "string" && /^[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]/.test(text) ? "'" + text : text; // a spreadsheet would run it
  return `"${harmless.replaceAll('"', '""')}"`;
}
function csv() {
  const records = done(), judged = records.some(one => "unusual" in one) ? ["unusual", "unusual_reason"] : [], texts = [...new Set(records.flatMap(one => Object.keys(one.similarity)))];
  const fields = [...new Set(records.flatMap(one => Object.keys(one.fields ?? {})))];
  const head = ["id", "caption", "error", ...texts.map(text => `similarity: ${text}`), "confidence", "finished", ...judged,
                ...fields.flatMap(name => [`field: ${name}`, `probability: ${name}`])];
  const lines = records.map(one => [one.id, one.caption, one.error, ...texts.map(text => one.similarity[text]), one.confidence, one.finished, ...judged.map(name => one[name]),
                                    ...fields.flatMap(name => [one.fields?.[name]?.value, one.fields?.[name]?.probability])]);
  return "\ufeff" + [head, ...lines].map(line => line.map(cell).join(",") + "\r\n").join("");
}
part("save_csv").addEventListener("click", () => download("captions.csv", new Blob([csv()], { type: "text/csv" })));
part("save_jsonl").addEventListener("click", () => download("captions.jsonl", new Blob(done().map(one => JSON.stringify(one) + "\n"))));
part("run").addEventListener("click", run);
part("stop").addEventListener("click", () => {
  const request = running;
  running = null;
  if (request instanceof XMLHttpRequest) request.abort();
});
part("file").addEventListener("change", event => choose(event.target.files));
for (const event of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(event, e => {
    e.preventDefault();
    drop.classList.toggle("over", event === "dragover");
    if (event === "drop" && e.dataTransfer.files.length) choose(e.dataTransfer.files);
  });
}
