"use strict";
// Values under the pointer: the nearest point of every series at the pointer's place on the x axis.
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const { x: [start, end, low, high, log], label, s: series } = JSON.parse(figure.dataset.chart);
  const svg = figure.querySelector(":scope > svg");
  const view = svg.viewBox.baseVal;
  const shown = (v) => (Math.abs(v) >= 1e5 || (v !== 0 && Math.abs(v) < 1e-4) ? v.toExponential(2) : String(+v.toPrecision(4)));
  const place = (v) => start + (end - start) * (log ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low || 1));
  let tip, cross;
  const leave = () => { tip?.remove(); cross?.remove(); tip = cross = undefined; };
  const move = (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * view.width;
    if (at < start - 6 || at > end + 6) return leave();
    let best;
    for (const { x } of series) for (const v of x) if (best === undefined || Math.abs(place(v) - at) < Math.abs(place(best) - at)) best = v;
    if (best === undefined) return;
    if (!tip) {
      tip = figure.appendChild(document.createElement("div"));
      tip.className = "tip";
      cross = svg.appendChild(svg.querySelector("line").cloneNode());
      cross.setAttribute("class", "cross");
    }
    for (const [k, v] of [["x1", place(best)], ["x2", place(best)], ["y1", 8], ["y2", view.height - 34]]) cross.setAttribute(k, v);
    tip.replaceChildren(`${label} ${shown(best)}`);
    for (const { n, c, x, y } of series) {
      const near = x.reduce((k, v, i) => (Math.abs(place(v) - place(best)) < Math.abs(place(x[k]) - place(best)) ? i : k), 0);
      if (Math.abs(place(x[near]) - place(best)) > 4) continue;
      const line = document.createElement("div");
      const dot = document.createElement("i");
      dot.className = `k${c % 8}`;
      line.append(dot, `${n} ${shown(y[near])}`);
      tip.append(line);
    }
    const frame = figure.getBoundingClientRect();
    const px = box.left - frame.left + (place(best) / view.width) * box.width;
    const left = px + 14 + tip.offsetWidth > frame.width ? px - 14 - tip.offsetWidth : px + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${box.top - frame.top + 10}px`;
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", leave);
}
// The slider leafs through the sample strips of one run.
for (const part of document.querySelectorAll("[data-leaf]")) {
  const frames = [...part.querySelectorAll("img")];
  const input = part.querySelector("input"), output = part.querySelector("output");
  part.querySelector(".slider").hidden = false;
  input.addEventListener("input", () => {
    frames.forEach((frame, i) => (frame.hidden = i !== +input.value));
    output.textContent = frames[+input.value].dataset.name;
  });
}
