"use strict";
// What hovering says, at once and on touch too; without this script the browser says it by itself.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll("svg title")) {
  title.parentElement.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointerover", (event) => {
  const marked = event.target.closest("[data-tip]");
  tip.hidden = !marked;
  if (marked) tip.textContent = marked.dataset.tip;
});
document.addEventListener("pointermove", (event) => {
  const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
  const under = event.clientY + 18;
  const y = under + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 12 : under;
  tip.style.translate = `${Math.max(x, 8)}px ${Math.max(y, 8)}px`;
});
