const drop = document.getElementById("drop"), file = document.getElementById("file"), state = document.getElementById("status");
function table(id, rows) {
  const box = document.getElementById(id);
  if (!box) return;
  box.replaceChildren(...rows.map(([text, value]) => {
    const row = document.createElement("tr");
    for (const cell of [value.toFixed(4), text]) row.insertCell().textContent = cell;
    return row;
  }));
}
function fail(text) {
  state.className = "alert";
  state.textContent = text;
}
async function describe(slide) {
  document.getElementById("answer").hidden = true;
  if (slide.size > Number(drop.dataset.mostBytes)) return fail(`error: upload: ${slide.size} bytes, at most ${drop.dataset.mostBytes}`);
  state.className = "soft";
  state.textContent = `${slide.name} …`;
  // a header takes ASCII only
  const texts = JSON.stringify(document.getElementById("texts").value.split("\n"))
    .replace(/[\u0080-\uffff]/g, c => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  let found;
  try {
    const answer = await fetch("/describe", { method: "POST", body: slide, headers: { "x-prism-coca": "1", "x-texts": texts } });
    found = await answer.json();
  } catch (error) {
    return fail(`error: ${error.message}`);
  }
  if (found.error) return fail(found.error);
  state.textContent = slide.name;
  document.getElementById("plain").textContent = found.caption;
  document.getElementById("cut").hidden = found.finished;
  table("scores", found.scores);
  table("nearest", found.nearest);
  if (found.map) showTiles(found.map, document.getElementById("caption"), document.getElementById("map"), document.getElementById("note"));
  else document.getElementById("note").textContent = found.why_no_map;
  document.getElementById("answer").hidden = false;
}
file.addEventListener("change", () => { if (file.files.length) describe(file.files[0]); });
for (const event of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(event, e => {
    e.preventDefault();
    drop.classList.toggle("over", event === "dragover");
    if (event === "drop" && e.dataTransfer.files.length) describe(e.dataTransfer.files[0]);
  });
}
