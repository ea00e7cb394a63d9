"use strict";
/* Plots: each figure with data is drawn by uPlot in place of its picture, with values on hover and zoom. */
(() => {
  const { data, el, hue, hidden, armChip, onChange } = lossscope;
  const DASHES = [6, 3];
  const REACH = 40; // pixels from the cursor to a value that is read
  const plots = [];

  /* Colors of the page, which a canvas needs resolved. */
  const probe = el("span", { hidden: true });
  document.body.append(probe);
  const known = new Map();
  function color(variable, alpha = 1) {
    if (!known.has(variable)) {
      probe.style.color = `var(${variable})`;
      known.set(variable, getComputedStyle(probe).color);
    }
    const found = known.get(variable);
    return alpha === 1 ? found : found.replace(/^rgba?\(([^)]+)\)$/, (_, parts) => `rgba(${parts.split(",").slice(0, 3)}, ${alpha})`);
  }
  const inkOf = (line) => (alpha) => color(`--${hue(line.arm)}`, alpha);

  /* Scales: linear, logarithmic, and linear around zero. */
  const SCALES = {
    linear: () => ({ distr: 1, to: (v) => v, from: (t) => t }),
    log: () => ({ distr: 3, to: Math.log10, from: (t) => 10 ** t }),
    symlog: ({ linear }) => ({ distr: 4, asinh: linear, to: (v) => Math.asinh(v / linear), from: (t) => Math.sinh(t) * linear }),
  };
  const scaleOf = (axis) => SCALES[axis.scale](axis);

  function padded([low, high], scale, share) {
    if (!(low <= high)) return scale.distr === 3 ? [1, 10] : [0, 1];
    let [a, b] = [scale.to(low), scale.to(high)];
    const room = share * (b - a) || 0.5 * (Math.abs(b) || 1) * (scale.distr === 3 ? 0.1 : 1);
    return [scale.from(a - room), scale.from(b + room)];
  }

  function extent(values) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) {
      if (value == null || !Number.isFinite(value)) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    return [low, high];
  }

  /* Ticks: as in the pictures, few and round. */
  function linearTicks(low, high, most = 6) {
    const rough = (high - low) / most;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
    const ticks = [];
    for (let k = Math.ceil(low / step); k * step <= high * (1 + 1e-12); k++) ticks.push(Number((k * step).toPrecision(12)));
    return ticks;
  }

  function powers(low, high) {
    const [first, last] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
    const stride = Math.max(1, Math.ceil((last - first + 1) / 7));
    const found = [];
    for (let k = first; k <= last; k++) if ((k - last) % stride === 0) found.push(10 ** k);
    return found;
  }

  function logTicks(low, high) {
    const tens = powers(low, high);
    if (tens.length >= 3) return tens;
    const finer = powers(low / 10, high).flatMap((ten) => [1, 2, 5].map((one) => one * ten)).filter((one) => one >= low && one <= high);
    return finer.length >= 2 ? finer : linearTicks(low, high);
  }

  function symlogTicks(low, high, linear) {
    const least = linear / 3;
    const up = high > least ? powers(Math.max(least, low), high) : [];
    const down = low < -least ? powers(Math.max(least, -high), -low).map((one) => -one).reverse() : [];
    const ticks = [...down, ...(low <= 0 && high >= 0 ? [0] : []), ...up];
    return ticks.length >= 2 ? ticks : linearTicks(low, high);
  }

  function ticksOf(axis) {
    if (axis.scale === "log") return (low, high) => logTicks(low, high);
    if (axis.scale === "symlog") return (low, high) => symlogTicks(low, high, axis.linear);
    return (low, high) => linearTicks(low, high);
  }

  function short(value) {
    const size = Math.abs(value);
    if (value === 0 || (size >= 1e-3 && size < 1e6)) return String(Number(value.toPrecision(6)));
    return value.toExponential().replace(/(\.\d{3})\d+e/, "$1e").replace("e+", "e");
  }

  /* Numbers: no more digits than the error justifies, two of which are shown. */
  function written(value, error) {
    if (value == null) return "–";
    const size = Math.max(Math.abs(value), error);
    const plain = value === 0 || (size >= 1e-3 && size < 1e6);
    const power = Math.floor(Math.log10(size || 1));
    const digits = error > 0 ? Math.min(6, Math.max(1, power - Math.floor(Math.log10(error)) + 2)) : 4;
    if (!plain) return value.toExponential(digits - 1).replace("e+", "e");
    return value.toFixed(Math.max(0, digits - 1 - power));
  }

  function reading(line, at) {
    const error = line.error?.[at];
    const [low, high] = [line.low?.[at], line.high?.[at]];
    const there = low != null && high != null && low < high;
    const half = there ? (high - low) / 2 : 0;
    let words = written(line.y[at], error > 0 ? error : half);
    if (error > 0) words += ` ± ${Number(error.toPrecision(2))}`;
    if (there) words += ` [${written(low, half)}, ${written(high, half)}]`;
    return words;
  }

  /* A scatter has several values at one place: the next ones become a line of their own. */
  function tables(lines, scatter) {
    const found = [];
    for (const line of lines) {
      const order = line.x.map((_, at) => at).filter((at) => line.x[at] != null).sort((a, b) => line.x[a] - line.x[b]);
      let rest = order;
      do {
        const [here, later] = [[], []];
        for (const at of rest) (here.length && line.x[here[here.length - 1]] === line.x[at] ? later : here).push(at);
        found.push({ line, places: here });
        rest = later;
      } while (scatter && rest.length);
    }
    return found;
  }

  class Plot {
    constructor(figure, spec) {
      this.spec = spec;
      this.x = scaleOf(spec.x);
      this.y = scaleOf(spec.y);
      this.parts = tables(spec.lines, spec.scatter);
      this.zoom = null;
      this.full = this.fullRange();
      this.legend = this.makeLegend();
      this.reading = el("div", { className: "reading", hidden: true });
      this.spoken = el("div", { className: "unseen", role: "status" });
      this.reset = el("button", { className: "tool zoomed-out", type: "button", hidden: true }, "Reset zoom");
      this.reset.addEventListener("click", () => this.setZoom(null));
      this.canvas = el("div", { className: "plot", tabIndex: 0, role: "group" });
      this.canvas.setAttribute("aria-label", `${spec.title}: arrow keys read values, plus and minus zoom, 0 resets`);
      this.canvas.addEventListener("keydown", (event) => this.key(event));
      this.canvas.addEventListener("blur", () => this.hideReading());
      figure.querySelector("svg").after(this.legend, this.canvas);
      figure.classList.add("drawn");
      this.u = this.make();
      this.canvas.append(this.reading, this.reset, this.spoken);
      new ResizeObserver(() => this.u.setSize(this.size())).observe(this.canvas);
    }

    fullRange() {
      const { limits, scale, falling } = this.spec.x;
      if (!limits) return padded(extent(this.spec.lines.flatMap((line) => line.x)), this.x, 0.02);
      return falling ? limits : [limits[0], limits[1] * (scale === "linear" ? 1.02 : 1.1)];
    }

    visible(line) {
      return !hidden.arm.has(String(line.arm));
    }

    size() {
      const width = Math.max(280, Math.floor(this.canvas.clientWidth));
      return { width, height: Math.round(Math.min(420, 0.58 * width)) };
    }

    yRange() {
      const { limits } = this.spec.y;
      if (limits && !this.zoom) return limits;
      const [from, to] = this.zoom ?? this.full;
      const shown = [];
      for (const line of this.spec.lines.filter((one) => this.visible(one))) {
        line.x.forEach((x, at) => {
          if (x == null || x < from || x > to || line.y[at] == null) return;
          const error = line.error?.[at] ?? 0;
          shown.push(line.y[at], line.low?.[at], line.high?.[at], line.y[at] - error, line.y[at] + error);
        });
      }
      shown.push(...(this.spec.rules ?? []).filter((rule) => !rule.vertical).map((rule) => rule.value));
      return padded(extent(this.y.distr === 3 ? shown.filter((one) => one > 0) : shown), this.y, 0.05);
    }

    make() {
      const joined = uPlot.join(
        this.parts.map(({ line, places }) => [places.map((at) => line.x[at]), places.map((at) => line.y[at])]),
      );
      this.data = this.parts.length ? joined : [[], []];
      this.at = this.parts.map(({ line, places }) => new Map(places.map((at) => [line.x[at], at])));
      const axis = (described, side) => ({
        scale: side ? "y" : "x",
        label: described.label,
        labelSize: 18,
        labelGap: 0,
        size: side ? 58 : 34,
        gap: 4,
        font: "11px system-ui, sans-serif",
        labelFont: "12px system-ui, sans-serif",
        stroke: () => color("--ink"),
        grid: { show: side, stroke: () => color("--grid"), width: 1 },
        ticks: { stroke: () => color("--muted"), width: 1, size: 4 },
        border: { show: true, stroke: () => color("--muted"), width: 1 },
        splits: (u, index, low, high) => ticksOf(described)(low, high),
        filter: (u, ticks) => ticks,
        values: (u, ticks) => ticks.map(short),
      });
      const scale = (described, more) => ({ time: false, auto: true, ...(described.asinh ? { asinh: described.asinh } : {}), distr: described.distr, ...more });
      const options = {
        ...this.size(),
        padding: [8, 12, 0, 0],
        legend: { show: false },
        scales: {
          x: scale(this.x, { dir: this.spec.x.falling ? -1 : 1, range: () => this.zoom ?? this.full }),
          y: scale(this.y, { range: () => this.yRange() }),
        },
        axes: [axis(this.spec.x, false), axis(this.spec.y, true)],
        series: [{}, ...this.parts.map(({ line }) => this.series(line))],
        cursor: {
          y: false,
          drag: { x: true, y: false, setScale: false },
          points: { show: !this.spec.scatter, size: 6 },
          dataIdx: (u, series, index) => this.nearest(series, index),
          bind: { dblclick: () => () => (this.setZoom(null), null) },
        },
        hooks: {
          drawAxes: [(u) => this.under(u)],
          draw: [(u) => this.over(u)],
          setCursor: [(u) => this.read(u)],
          setSelect: [(u) => this.selected(u)],
        },
      };
      return new uPlot(options, this.data, this.canvas);
    }

    series(line) {
      const ink = inkOf(line);
      const few = line.x.length < 60;
      const scatter = this.spec.scatter;
      return {
        scale: "y",
        show: this.visible(line),
        stroke: () => ink(1),
        width: line.x.length > 150 ? 1 : 1.6,
        dash: line.dashed ? DASHES : undefined,
        paths: scatter ? () => null : undefined,
        points: { show: scatter || line.interval || few, size: scatter || line.interval ? 6 : 4, fill: () => ink(scatter ? 0.75 : 1), width: 0 },
      };
    }

    /* The index of the value of a line that is nearest to the cursor. */
    nearest(series, index) {
      const values = this.data[series];
      if (!series || index == null || values[index] != null) return index;
      for (let away = 1; away < values.length; away++) {
        if (values[index - away] != null) return index - away;
        if (values[index + away] != null) return index + away;
      }
      return null;
    }

    clipped(u, draw) {
      const { left, top, width, height } = u.bbox;
      u.ctx.save();
      u.ctx.beginPath();
      u.ctx.rect(left, top, width, height);
      u.ctx.clip();
      draw(u.ctx);
      u.ctx.restore();
    }

    /* Bands and rules, below the lines. */
    under(u) {
      const [px, py] = ["x", "y"].map((key) => (value) => u.valToPos(value, key, true));
      this.clipped(u, (ctx) => {
        for (const line of this.spec.lines) if (line.low && !line.interval && this.visible(line)) this.band(ctx, line, px, py);
        ctx.strokeStyle = color("--ink");
        ctx.lineWidth = devicePixelRatio;
        const { left, top, width, height } = u.bbox;
        for (const rule of this.spec.rules ?? []) {
          ctx.setLineDash((rule.vertical ? [1, 2] : [3, 3]).map((one) => one * devicePixelRatio));
          ctx.beginPath();
          if (rule.vertical) ctx.rect(px(rule.value), top, 0, height);
          else ctx.rect(left, py(rule.value), width, 0);
          ctx.stroke();
        }
      });
    }

    band(ctx, line, px, py) {
      const at = line.x.map((x, i) => i).filter((i) => line.x[i] != null);
      let run = [];
      const fill = () => {
        if (run.length > 1) {
          ctx.fillStyle = inkOf(line)(0.15);
          ctx.beginPath();
          run.forEach((i) => ctx.lineTo(px(line.x[i]), py(line.low[i])));
          run.reverse().forEach((i) => ctx.lineTo(px(line.x[i]), py(line.high[i])));
          ctx.fill();
        }
        run = [];
      };
      for (const i of at) {
        if (line.low[i] == null || line.high[i] == null) fill();
        else run.push(i);
      }
      fill();
    }

    /* Whiskers, and ticks of isolated values, above the lines. */
    over(u) {
      const [px, py] = ["x", "y"].map((key) => (value) => u.valToPos(value, key, true));
      const floor = this.y.distr === 3 ? u.scales.y.min : -Infinity;
      const { top, height } = u.bbox;
      this.clipped(u, (ctx) => {
        ctx.setLineDash([]);
        ctx.lineWidth = devicePixelRatio;
        this.spec.lines.filter((one) => this.visible(one)).forEach((line, row) => {
          ctx.strokeStyle = inkOf(line)(0.85);
          ctx.beginPath();
          line.x.forEach((x, i) => {
            const y = line.y[i];
            if (x == null || y == null) return;
            const error = line.error?.[i] ?? 0;
            const [low, high] = line.interval ? [line.low[i], line.high[i]] : [y - error, y + error];
            if (low == null || high == null || !(low < high)) return;
            ctx.moveTo(px(x), py(Math.max(low, floor)));
            ctx.lineTo(px(x), py(high));
          });
          for (const x of line.ticks ?? []) {
            const foot = top + height * (0.97 - 0.05 * row);
            ctx.moveTo(px(x), foot - 0.02 * height);
            ctx.lineTo(px(x), foot + 0.02 * height);
          }
          ctx.stroke();
        });
      });
    }

    /* Values at the cursor. */
    read(u) {
      const { left, top } = u.cursor;
      const rows = left == null || left < 0 || !this.parts.length ? [] : this.spec.scatter ? this.pointAt(u, left, top) : this.valuesAt(u, left);
      if (!rows.length) return this.hideReading();
      const [head, ...lines] = rows;
      this.reading.replaceChildren(
        el("p", {}, head),
        ...lines.map(({ line, words }) => el("p", {}, el("span", { className: `swatch ${hue(line.arm)}` }), el("span", {}, this.nameOf(line)), el("span", {}, words))),
      );
      this.reading.hidden = false;
      const [area, room] = [u.over, this.canvas.clientWidth];
      const shift = area.offsetLeft + left + 14;
      const turned = shift + this.reading.offsetWidth > room;
      this.reading.style.left = `${Math.max(0, turned ? shift - 28 - this.reading.offsetWidth : shift)}px`;
      if (this.speaks) this.spoken.textContent = this.reading.innerText.replace(/\s+/g, " ");
    }

    nameOf(line) {
      return this.spec.styles ? `${line.name}, ${this.spec.styles[line.dashed ? 1 : 0]}` : line.name;
    }

    valuesAt(u, left) {
      const rows = [];
      let head = null;
      this.parts.forEach(({ line }, place) => {
        const index = u.cursor.idxs?.[place + 1];
        if (index == null || !this.visible(line)) return;
        const x = this.data[0][index];
        const away = Math.abs(u.valToPos(x, "x") - left);
        if (away > REACH) return;
        const at = this.at[place].get(x);
        if (head === null || away < head.away) head = { x, away };
        rows.push({ line, x, words: reading(line, at) });
      });
      if (head === null) return [];
      for (const row of rows) if (row.x !== head.x) row.words += ` at ${short(row.x)}`;
      return [`${this.spec.x.label} ${short(head.x)}`, ...rows];
    }

    pointAt(u, left, top) {
      let best = null;
      for (const line of this.spec.lines.filter((one) => this.visible(one))) {
        line.x.forEach((x, at) => {
          if (x == null || line.y[at] == null) return;
          const away = Math.hypot(u.valToPos(x, "x") - left, (u.valToPos(line.y[at], "y") - top) * (this.speaks ? 0 : 1));
          if (away < REACH && (best === null || away < best.away)) best = { line, at, away };
        });
      }
      if (best === null) return [];
      return [`${this.spec.x.label} ${short(best.line.x[best.at])}`, { line: best.line, words: reading(best.line, best.at) }];
    }

    hideReading() {
      this.reading.hidden = true;
    }

    /* Zoom. */
    setZoom(range) {
      this.zoom = range;
      this.reset.hidden = range === null;
      this.hideReading();
      const [min, max] = range ?? this.full;
      this.u.setScale("x", { min, max });
    }

    selected(u) {
      const { left, width } = u.select;
      if (width < 5) return;
      const ends = [u.posToVal(left, "x"), u.posToVal(left + width, "x")].sort((a, b) => a - b);
      u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
      this.setZoom(ends);
    }

    zoomBy(factor) {
      const [low, high] = (this.zoom ?? this.full).map(this.x.to);
      const middle = this.cursorX == null ? (low + high) / 2 : this.x.to(this.cursorX);
      const ends = [low, high].map((end) => middle + (end - middle) * factor);
      const [first, last] = this.full.map(this.x.to);
      const kept = [Math.max(first, ends[0]), Math.min(last, ends[1])];
      this.setZoom(kept[0] <= first && kept[1] >= last ? null : kept.map(this.x.from));
    }

    key(event) {
      const steps = { ArrowLeft: -1, ArrowRight: 1 };
      if (event.target !== this.canvas || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key in steps) this.move(steps[event.key] * (this.spec.x.falling ? -1 : 1) * (event.shiftKey ? 10 : 1));
      else if (event.key === "+" || event.key === "=") this.zoomBy(0.5);
      else if (event.key === "-") this.zoomBy(2);
      else if (event.key === "0") this.setZoom(null);
      else if (event.key === "Escape") this.hideReading();
      else return;
      event.preventDefault();
    }

    move(by) {
      const [from, to] = this.zoom ?? this.full;
      const places = this.data[0].filter((x) => x >= from && x <= to);
      if (!places.length) return;
      const now = this.cursorX == null ? -1 : places.findIndex((x) => x >= this.cursorX);
      const next = this.cursorX == null ? (by > 0 ? 0 : places.length - 1) : now + by;
      this.cursorX = places[Math.min(places.length - 1, Math.max(0, next))];
      this.speaks = true;
      this.u.setCursor({ left: this.u.valToPos(this.cursorX, "x"), top: this.u.over.clientHeight / 2 });
      this.speaks = false;
    }

    /* Legend. */
    makeLegend() {
      const { lines, rules = [], styles, absent } = this.spec;
      const legend = el("div", { className: "legend" });
      const names = new Map();
      for (const line of lines) if (!names.has(line.arm)) names.set(line.arm, line.name);
      const entry = (kind, words) => el("span", { className: "entry" }, el("span", { className: `swatch rule ${kind}` }), words);
      for (const [arm, name] of names) legend.append(armChip(arm, name));
      if (styles) legend.append(entry("solid", styles[0]), entry("", styles[1]));
      for (const rule of rules) legend.append(entry(rule.vertical ? "mark" : "", rule.label));
      if (absent.length) legend.append(el("span", { className: "entry" }, `not measured: ${absent.join(", ")}`));
      return legend;
    }

    update(kind) {
      if (kind === "arm") {
        this.u.batch(() => this.parts.forEach(({ line }, place) => this.u.setSeries(place + 1, { show: this.visible(line) })));
      }
      this.u.redraw(false, true);
    }
  }

  onChange((kind) => {
    known.clear();
    if (kind !== "layer") plots.forEach((plot) => plot.update(kind));
  });

  const waiting = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        waiting.unobserve(target);
        plots.push(new Plot(target, data.plots[target.id]));
      }
    },
    { rootMargin: "600px" },
  );
  for (const key of Object.keys(data.plots)) waiting.observe(document.getElementById(key));
})();
