"use strict";
// the language button, without reloading
const root = document.documentElement, languageButton = document.getElementById("language");
function speak(language) {
  root.dataset.lang = root.lang = language;
  languageButton.textContent = language === "zh" ? "English" : "中文";
}
languageButton.addEventListener("click", () => speak(root.dataset.lang === "en" ? "zh" : "en"));
speak(navigator.language.startsWith("zh") ? "zh" : "en");

// charts: the point nearest to the pointer or finger says what it is
for (const svg of document.querySelectorAll("svg.chart")) {
  const tip = svg.parentElement.querySelector(".tip"), points = [...svg.querySelectorAll(".point")];
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
    const distance = p => Math.hypot(p.cx.baseVal.value - x, p.cy.baseVal.value - y);
    const near = points.reduce((a, b) => distance(a) <= distance(b) ? a : b);
    points.forEach(p => p.classList.toggle("near", p === near));
    tip.textContent = near.querySelector("title").textContent;
  });
}
