// the point nearest to the pointer or finger says what it is
for (const svg of document.querySelectorAll("svg.chart")) {
  const tip = svg.parentElement.querySelector(".tip"), points = [...svg.querySelectorAll(".point")];
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    const distance = p => Math.hypot(p.cx.baseVal.value - x, p.cy.baseVal.value - y);
    const near = points.reduce((a, b) => distance(a) <= distance(b) ? a : b);
    points.forEach(p => p.classList.toggle("near", p === near));
    const { epoch, value } = near.dataset, line = near.parentElement.dataset;
    tip.textContent = say(`${line.zh}，第 ${epoch} 轮：${value}`, `${line.en}, epoch ${epoch}: ${value}`);
  });
}
