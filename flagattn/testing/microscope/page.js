"use strict";
// Titles become the page's own tooltips.
const tip = document.getElementById("tip");
for (const title of document.querySelectorAll("svg title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove();
}
document.addEventListener("pointermove", (event) => {
  const text = event.target.dataset && event.target.dataset.tip;
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  const beside = event.clientX + 16 + tip.offsetWidth > innerWidth ? -16 - tip.offsetWidth : 16;
  tip.style.left = event.clientX + beside + "px";
  tip.style.top = Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8) + "px";
});

// Two clocks.
for (const button of document.querySelectorAll("[data-view]")) {
  button.onclick = () => {
    for (const other of document.querySelectorAll("[data-view]")) {
      other.setAttribute("aria-pressed", other === button);
      document.getElementById(other.dataset.view).hidden = other !== button;
    }
  };
}

// Zoom stretches the steps and leaves words as they are; names stay at the left while the steps move.
for (const view of document.querySelectorAll(".view")) {
  const svg = view.firstElementChild, labels = +svg.dataset.labels, length = +svg.dataset.length;
  const whole = (svg.width.baseVal.value - labels - 18) / length;
  let scale = whole;
  const draw = (wanted, at) => {
    const step = (view.scrollLeft + at - labels) / scale;
    scale = Math.min(Math.max(wanted, whole), 24);
    const width = labels + length * scale + 18;
    svg.setAttribute("width", width);
    svg.setAttribute("viewBox", `0 0 ${width} ${svg.getAttribute("height")}`);
    svg.querySelector(".steps").setAttribute("transform", `translate(${labels} 0) scale(${scale} 1)`);
    for (const word of svg.querySelectorAll(".words > *")) {
      word.setAttribute(word.tagName === "circle" ? "cx" : "x", labels + word.dataset.step * scale);
    }
    view.scrollLeft = step * scale + labels - at;
  };
  view.addEventListener("scroll", () => {
    svg.querySelector(".names").setAttribute("transform", `translate(${view.scrollLeft} 0)`);
  });
  view.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    draw(scale * (event.deltaY < 0 ? 1.25 : 0.8), event.clientX - view.getBoundingClientRect().left);
  }, { passive: false });
  for (const button of document.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => {
      if (!view.hidden) draw(+button.dataset.zoom ? scale * button.dataset.zoom : whole, view.clientWidth / 2);
    });
  }
}
