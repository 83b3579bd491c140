"use strict";
// Draws the map from its data, and shows an image's thumbnail where one points, taps or goes by arrow keys.
// All text enters by textContent, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.getElementById("tip");

  const make = (tag, attributes = {}, space = null) => {
    const made = space ? document.createElementNS(space, tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };

  // lines: the first is set in bold; box: of what is pointed at.
  const showTip = (source, lines, box) => {
    const words = make("span");
    lines.forEach((line, place) => {
      const one = make(place ? "span" : "b");
      const text = make("bdi");
      text.textContent = line;
      one.append(text);
      words.append(one);
    });
    let picture;
    if (source) {
      picture = make("img", { alt: "" });
      picture.src = source;
    } else {
      picture = make("span", { class: "missing" });
      picture.textContent = "×";
    }
    tip.replaceChildren(picture, words);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    const left = Math.max(8, Math.min(box.x + box.width / 2 - width / 2, room - width - 8));
    const above = box.y - height - 10;
    tip.style.left = `${left}px`;
    tip.style.top = `${above > 4 ? above : box.y + box.height + 10}px`;
  };
  const hideTip = () => { tip.hidden = true; };

  document.querySelectorAll(".tiles, .overlays").forEach((tiles) => {
    const show = (event) => {
      const image = event.target.closest("img");
      if (image) showTip(image.src, image.alt.split("; "), image.getBoundingClientRect());
    };
    tiles.addEventListener("pointerover", show);
    tiles.addEventListener("pointerdown", show);
    tiles.addEventListener("pointerleave", hideTip);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });

  const holder = document.getElementById("map-data");
  if (!holder) {
    document.addEventListener("scroll", hideTip, { passive: true });
    return;
  }
  const data = JSON.parse(holder.textContent);
  const map = document.getElementById("map");
  const legend = document.getElementById("legend");
  const note = document.getElementById("map-note");
  const count = data.name.length;
  const MOST_NAMES = 60; // of groups, written on the map where there is room
  const CROSS = data.shapes;

  const looks = (index) => (index < 0
    ? { color: "noise", shape: CROSS }
    : { color: `c${index % data.colors}`, shape: Math.floor(index / data.colors) % data.shapes });

  let layout = data.layouts[0].xy;
  let groups = data.clusters;
  let member = data.cluster;
  let picked = -1;
  let current = -1;

  const all = data.name.map((_, i) => i);
  const points = all.map(() => make("use", {}, SVG));
  const ring = make("circle", { class: "ring", r: 8, visibility: "hidden" }, SVG);
  const names = make("g", {}, SVG);
  map.append(...points, names, ring);

  const middle = (values) => values.sort((a, b) => a - b)[values.length >> 1];

  const draw = () => {
    points.forEach((point, i) => {
      const { color, shape } = looks(groups[member[i]][2]);
      point.setAttribute("href", `#m${shape}`);
      point.setAttribute("class", member[i] === picked ? `${color} on` : color);
      point.setAttribute("x", `${layout[2 * i]}%`);
      point.setAttribute("y", `${layout[2 * i + 1]}%`);
    });
    map.classList.toggle("picked", picked >= 0);
    names.replaceChildren();
    const taken = [];
    groups.forEach(([name, , index], group) => {
      if (index < 0 || (group >= MOST_NAMES && group !== picked)) return;
      const mine = all.filter((i) => member[i] === group);
      const x = middle(mine.map((i) => layout[2 * i]));
      const y = middle(mine.map((i) => layout[2 * i + 1]));
      const isFree = taken.every(([a, b]) => Math.abs(a - x) > 4 || Math.abs(b - y) > 3);
      if (!isFree && group !== picked) return;
      taken.push([x, y]);
      const text = make("text", { x: `${x}%`, y: `${y}%`, class: group === picked ? "on" : "" }, SVG);
      text.textContent = name;
      names.append(text);
    });
    mark();
  };

  const drawLegend = () => {
    legend.replaceChildren(...groups.map(([name, size, index], group) => {
      const button = make("button", { type: "button", "aria-pressed": group === picked });
      const { color, shape } = looks(index);
      const swatch = make("svg", { class: "swatch", width: 16, height: 16, "aria-hidden": "true" }, SVG);
      swatch.append(make("use", { href: `#m${shape}`, x: 8, y: 8, class: color }, SVG));
      const word = make("bdi");
      word.textContent = name;
      const number = make("small");
      number.textContent = size.toLocaleString("en");
      button.append(swatch, word, number);
      button.addEventListener("click", () => {
        picked = picked === group ? -1 : group;
        legend.querySelectorAll("button").forEach((one, place) => {
          one.setAttribute("aria-pressed", place === picked);
        });
        draw();
      });
      return button;
    }));
  };

  // Where an image lies on the screen, as a function of its number.
  const placing = () => {
    const box = map.getBoundingClientRect();
    const [left, top] = [box.x + map.clientLeft, box.y + map.clientTop];
    const [width, height] = [map.clientWidth / 100, map.clientHeight / 100];
    return (i) => ({ x: left + layout[2 * i] * width, y: top + layout[2 * i + 1] * height });
  };

  const mark = () => {
    ring.setAttribute("visibility", current < 0 ? "hidden" : "visible");
    if (current < 0) return;
    ring.setAttribute("cx", `${layout[2 * current]}%`);
    ring.setAttribute("cy", `${layout[2 * current + 1]}%`);
  };

  const thumbnail = (i) => {
    const where = data.thumbnail[i];
    return where.startsWith("#") ? document.getElementById(where.slice(1)).src : where;
  };

  const select = (i) => {
    current = i;
    mark();
    if (i < 0) {
      hideTip();
      return;
    }
    const { x, y } = placing()(i);
    const lines = [data.name[i], `cluster ${data.clusters[data.cluster[i]][0]}`];
    if (data.labels.length) lines.push(`class ${data.labels[data.label[i]][0]}`);
    showTip(thumbnail(i), lines, { x: x - 8, y: y - 8, width: 16, height: 16 });
  };

  const isShown = (i) => picked < 0 || member[i] === picked;

  // The nearest image to a point of the screen, no farther than `reach` pixels.
  const nearest = (x, y, reach) => {
    const place = placing();
    let best = -1;
    let least = reach * reach;
    for (let i = 0; i < count; i += 1) {
      const at = place(i);
      const apart = (at.x - x) ** 2 + (at.y - y) ** 2;
      if (apart < least && isShown(i)) {
        best = i;
        least = apart;
      }
    }
    return best;
  };

  // The next image in a direction: near, and not far off it to the side.
  const next = (dx, dy) => {
    let best = -1;
    let least = Infinity;
    for (let i = 0; i < count; i += 1) {
      const x = layout[2 * i] - layout[2 * current];
      const y = layout[2 * i + 1] - layout[2 * current + 1];
      const along = x * dx + y * dy;
      const cost = along + 3 * Math.abs(x * dy - y * dx);
      if (along > 0 && cost < least && isShown(i)) {
        best = i;
        least = cost;
      }
    }
    return best;
  };

  let waiting = false;
  map.addEventListener("pointermove", (event) => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      select(nearest(event.clientX, event.clientY, 18));
    });
  });
  map.addEventListener("pointerdown", (event) => select(nearest(event.clientX, event.clientY, 28)));
  map.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") select(-1); });
  map.addEventListener("blur", () => select(-1));
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") select(-1);
    const arrow = ARROWS[event.key];
    if (!arrow) return;
    event.preventDefault();
    const box = map.getBoundingClientRect();
    const found = current < 0 ? nearest(box.x + box.width / 2, box.y + box.height / 2, Infinity) : next(...arrow);
    if (found < 0) return;
    select(found);
    points[found].scrollIntoView({ block: "nearest" });
  });

  document.querySelectorAll("input[name=color]").forEach((input) => {
    input.addEventListener("change", () => {
      const byCluster = input.value === "0";
      groups = byCluster ? data.clusters : data.labels;
      member = byCluster ? data.cluster : data.label;
      picked = -1;
      drawLegend();
      draw();
    });
  });
  document.addEventListener("scroll", () => {
    if (current >= 0 && document.activeElement === map) select(current);
    else hideTip();
  }, { passive: true });
  const setLayout = (number) => {
    layout = data.layouts[number].xy;
    note.textContent = `${data.layouts[number].name}: ${data.layouts[number].note}`;
    select(-1);
    draw();
  };
  document.querySelectorAll("input[name=layout]").forEach((input) => {
    input.addEventListener("change", () => setLayout(Number(input.value)));
  });
  drawLegend();
  setLayout(0);
})();
