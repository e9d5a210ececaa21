"use strict";
// the language button, without reloading; other scripts listen for "language" to translate what they wrote
const root = document.documentElement, languageButton = document.getElementById("language");
const isChinese = () => root.dataset.lang !== "en";
const say = (zh, en) => isChinese() ? zh : en;
function speak(language) {
  root.dataset.lang = root.lang = language;
  languageButton.textContent = language === "zh" ? "English" : "中文";
  for (const option of document.querySelectorAll("option[data-zh]")) option.textContent = option.dataset[language];
  document.dispatchEvent(new Event("language"));
}
languageButton.addEventListener("click", () => speak(isChinese() ? "en" : "zh"));
speak(navigator.language.startsWith("zh") ? "zh" : "en");

// characters that nobody sees, or that turn text around, as escapes: the pages do the same with all other texts
const visible = text => text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, c => "\\u" + c.codePointAt(0).toString(16).padStart(4, "0"));

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
function button(className, zh, en) {
  const made = element("button", className);
  made.type = "button";
  made.append(spoken(zh, en));
  return made;
}
// a text in both languages, as the templates write it
function spoken(zh, en) {
  const both = document.createDocumentFragment();
  both.append(element("span", "zh", zh), element("span", "en", en));
  return both;
}
