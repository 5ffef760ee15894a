"use strict";
// Two images over each other: what is left of the divider is one, what is right of it the other.
const STEP = 2;

function compare(comparison) {
  const find = (name) => comparison.querySelector(`.${name}`);
  const [left, right, divider, zoom, view, stack, status] =
    ["left", "right", "divider", "zoom", "view", "stack", "status"].map(find);
  const [under, over] = [new Image(), new Image()];
  under.className = "under";
  over.className = "over";
  stack.append(under, over);

  function choose() {
    for (const [image, choice] of [[over, left], [under, right]]) {
      const source = document.getElementById(choice.value);
      image.alt = source.alt;
      image.width = source.getAttribute("width");
      image.height = source.getAttribute("height");
      image.src = source.src;
    }
    status.textContent = `Left of the divider: ${over.alt}. Right of it: ${under.alt}.`;
  }

  function divide() {
    stack.style.setProperty("--divider", `${divider.value}%`);
  }

  function magnify(x, y) {
    if (!view.classList.contains("zoomed")) {
      view.style.height = `${view.clientHeight}px`;
      view.classList.add("zoomed");
      view.scrollTo(x * view.scrollWidth - view.clientWidth / 2, y * view.scrollHeight - view.clientHeight / 2);
    } else {
      view.classList.remove("zoomed");
      view.style.height = "";
      view.scrollTo(0, 0);
    }
    zoom.setAttribute("aria-pressed", String(view.classList.contains("zoomed")));
  }

  left.addEventListener("change", choose);
  right.addEventListener("change", choose);
  divider.addEventListener("input", divide);
  zoom.addEventListener("click", () => magnify(0.5, 0.5));
  view.addEventListener("click", (event) => {
    const box = stack.getBoundingClientRect();
    magnify((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  });
  view.addEventListener("keydown", (event) => {
    const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      magnify(0.5, 0.5);
    } else if (direction && !view.classList.contains("zoomed")) {
      divider.value = Number(divider.value) + direction * STEP;
      divide();
    } else {
      return; // when magnified, the arrow keys scroll
    }
    event.preventDefault();
  });
  choose();
  divide();
  comparison.hidden = false;
}

document.querySelectorAll(".comparison").forEach(compare);
