// Draws the report from the comparison's own JSON (viommu.compare.v1), which stands in the page.
// Modelled time is linear in exact counts: a row's price is the sum of priced_events times constants,
// plus the wait for the queue's lock. Nothing here is a figure of its own.
"use strict";
(() => {
  const report = JSON.parse(document.getElementById("comparison").textContent);
  const rows = report.rows;
  const unique = (list) => [...new Set(list)];
  const strategies = unique(rows.map((r) => r.strategy));
  const vcpus = unique(rows.map((r) => r.vcpus));
  const policies = unique(rows.map((r) => r.policy));
  const constants = report.cost_constants;
  const prices = Object.fromEntries(constants.map((c) => [c.name, c.value_ns]));
  const state = {
    strategy: strategies[0], vcpus: vcpus[0], live: Math.max(...rows.map((r) => r.live_pages)),
    share: false, policy: policies.find((p) => p !== "strict") ?? policies[0], answer: "time",
  };

  // ---- numbers for people -------------------------------------------------------------------
  const digits = (v) => Math.abs(v) >= 100 ? v.toFixed(0) : Math.abs(v) >= 10 ? v.toFixed(1) : v.toFixed(2);
  const trim = (text) => text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  const duration = (ns) => {
    const size = Math.abs(ns);
    if (size < 1e3) return `${trim(digits(ns))} ns`;
    if (size < 1e6) return `${trim(digits(ns / 1e3))} µs`;
    if (size < 1e9) return `${trim(digits(ns / 1e6))} ms`;
    return `${trim(digits(ns / 1e9))} s`;
  };
  const count = (n) => Math.round(n).toLocaleString("en-US");
  const short = (n) => {
    if (n >= 1e6) return `${trim((n / 1e6).toFixed(1))}M`;
    if (n >= 1e3) return `${trim((n / 1e3).toFixed(n < 1e4 ? 1 : 0))}k`;
    return trim(n.toPrecision(3));
  };

  // ---- the model ----------------------------------------------------------------------------
  // Nanoseconds per unmap under the preset, with some constants replaced.
  function cost(row, changed = {}) {
    let total = row.modelled_ns.wait;
    for (const [name, n] of Object.entries(row.priced_events)) total += n * (changed[name] ?? prices[name]);
    return row.unmaps ? total / row.unmaps : 0;
  }
  const perUnmap = (row, value) => row.unmaps ? value / row.unmaps : 0;
  const chosen = () => rows.filter((r) => r.strategy === state.strategy && r.vcpus === state.vcpus);
  const byLive = (list, policy) =>
    list.filter((r) => r.policy === policy).sort((a, b) => a.live_pages - b.live_pages);

  // Cost of a policy at any live set between measured ones, linear between neighbours.
  function costAt(line, live, changed) {
    let i = 1;
    while (i < line.length - 1 && line[i].live_pages < live) ++i;
    if (line.length === 1) return cost(line[0], changed);
    const [a, b] = [line[i - 1], line[i]];
    const [x, y] = [cost(a, changed), cost(b, changed)];
    return x + (y - x) * (live - a.live_pages) / (b.live_pages - a.live_pages);
  }
  // Live sets at which two policies cost the same.
  function crossings(first, second, changed = {}) {
    const found = [];
    const points = [];
    for (const a of first) {
      const b = second.find((r) => r.live_pages === a.live_pages);
      if (!b) continue;
      const [x, y] = [cost(a, changed), cost(b, changed)];
      if (x !== y) points.push({live: a.live_pages, d: x - y, y: x});
    }
    for (let i = 1; i < points.length; ++i) {
      const [p, q] = [points[i - 1], points[i]];
      if ((p.d < 0) === (q.d < 0)) continue;
      const t = p.d / (p.d - q.d);
      found.push({live: p.live + (q.live - p.live) * t, cost: p.y + (q.y - p.y) * t});
    }
    return found;
  }

  // ---- drawing ------------------------------------------------------------------------------
  const known = ["strict", "lazy", "lazy-single", "lazy-psi", "lazy-psi-batched", "adaptive", "passthrough"];
  const colorOf = (policy) => `var(--${known.includes(policy) ? policy : "other"})`;
  const policyColors = {domain: policies, range: policies.map(colorOf)};
  const element = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const key = (items) => element("div", {class: "key"}, ...items.map(([name, color]) => {
    const swatch = element("i");
    swatch.style.background = color;
    return element("span", {}, swatch, name);
  }));
  function choice(name, title, values, label, get, set) {
    const box = element("fieldset", {class: "choice"}, element("legend", {}, title));
    for (const value of values) {
      const input = element("input", {type: "radio", name});
      input.checked = value === get();
      input.addEventListener("change", () => { set(value); drawAll(); });
      box.append(element("label", {}, input, label(value)));
    }
    return box;
  }
  const tip = (channels) => ({channels, format: Object.fromEntries(
    ["x", "y", "x1", "x2", "y1", "y2", "z", "r", "stroke", "fill", "fillOpacity", "fy"].map((c) => [c, false]))});
  // Powers of ten inside a range, twos and fives too where it is short; its ends where that is all.
  function decades(low, high) {
    const ticks = [];
    const fine = Math.log10(high / low) < 2.2 ? [1, 2, 5] : [1];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); ++e) {
      for (const m of fine) {
        if (m * 10 ** e >= low * 0.999 && m * 10 ** e <= high * 1.001) ticks.push(m * 10 ** e);
      }
    }
    return ticks.length >= 2 ? ticks : [low, high];
  }
  // About `n` round steps from low to high.
  function steps(low, high, n) {
    const rough = (high - low) / n || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
    const ticks = [];
    for (let t = Math.ceil(low / step) * step; t <= high * 1.0001; t += step) ticks.push(t);
    return ticks;
  }
  function range(values, pad = 1.25) {
    const positive = values.filter((v) => v > 0 && Number.isFinite(v));
    if (!positive.length) return [1, 10];
    return [Math.min(...positive) / pad, Math.max(...positive) * pad];
  }
  // Labels at the right ends of lines, moved apart where they would touch.
  function endLabels(ends, plot, spacing = 15) {
    const y = plot.scale("y");
    const placed = ends.map((e) => ({...e, at: y.apply(e.y)})).sort((a, b) => a.at - b.at);
    for (let i = 1; i < placed.length; ++i) placed[i].at = Math.max(placed[i].at, placed[i - 1].at + spacing);
    const low = Math.max(...y.range);
    for (let i = placed.length - 1; i >= 0; --i) {
      const limit = i === placed.length - 1 ? low : placed[i + 1].at - spacing;
      placed[i].at = Math.min(placed[i].at, limit);
    }
    return placed.map((e) => ({...e, y: y.invert(e.at)}));
  }
  const NARROW = 460;
  const liveAxis = (list, width) => {
    const sizes = unique(list.map((r) => r.live_pages)).sort((a, b) => a - b);
    const domain = sizes[0] === sizes[sizes.length - 1]
      ? [Math.max(sizes[0], 1) / 2, Math.max(sizes[0], 1) * 2]
      : [Math.max(sizes[0], 1), sizes[sizes.length - 1]];
    let ticks = sizes.filter((s) => s > 0);
    if (ticks.length > (width < NARROW ? 4 : 8)) ticks = decades(...domain);
    return {type: "log", domain, ticks, tickFormat: width < NARROW ? short : count, label: "live pages", sizes};
  };
  const liveOf = (r) => Math.max(r.live_pages, 1);

  function drawCost(width) {
    const list = chosen();
    const wide = width >= NARROW;
    const x = liveAxis(list, width);
    const domain = range(list.map((r) => cost(r)), 1.6);
    const strict = byLive(list, "strict");
    const marks = [];
    for (const policy of policies) {
      if (policy === "strict") continue;
      for (const c of crossings(byLive(list, policy), strict)) marks.push({...c, policy});
    }
    const base = (extra) => Plot.plot({
      width, height: 340, marginLeft: 58, marginRight: wide ? 116 : 16, marginTop: 24, marginBottom: 46,
      x: {...x, ticks: undefined}, y: {type: "log", domain, label: null}, color: policyColors,
      marks: [
        Plot.axisX({ticks: x.ticks, tickFormat: x.tickFormat, label: "live pages →"}),
        Plot.axisY({ticks: decades(...domain), tickFormat: duration, label: "↑ modelled time per unmap", tickSize: 3}),
        Plot.gridY({ticks: decades(...domain), stroke: "var(--grid)", strokeOpacity: 1}),
        Plot.ruleX(marks, {x: "live", stroke: (d) => d.policy, strokeDasharray: "4,3", strokeOpacity: 0.8}),
        Plot.lineY(list, {x: liveOf, y: (r) => cost(r), stroke: "policy", strokeWidth: 2.2,
          sort: "live_pages"}),
        Plot.dot(list, {x: liveOf, y: (r) => cost(r), fill: "policy", r: 3.5,
          tip: tip({policy: "policy", "live pages": (r) => count(r.live_pages), "per unmap": (r) => duration(cost(r)),
            "exits per unmap": (r) => digits(perUnmap(r, r.exits))})}),
        Plot.dot(marks, {x: "live", y: "cost", stroke: "currentColor", fill: "var(--card)", r: 5, strokeWidth: 1.5}),
        ...extra,
      ],
    });
    if (!wide) return [base([]), crossNote(marks)];
    const ends = policies.map((p) => byLive(list, p).at(-1)).filter(Boolean)
      .map((r) => ({policy: r.policy, x: liveOf(r), y: cost(r)}));
    const labels = endLabels(ends, base([]));
    return [base([Plot.text(labels, {x: "x", y: "y", text: "policy", fill: "policy", textAnchor: "start",
      dx: 9, fontWeight: 600})]), crossNote(marks)];
  }
  const crossNote = (marks) => element("p", {class: "small muted crossings"}, marks.length
    ? "Dashed: " + marks.map((m) => `${m.policy} and strict cost the same at about ${count(m.live)} live pages (${duration(m.cost)})`).join("; ") + "."
    : policies.includes("strict") && policies.length > 1
      ? "No policy crosses strict within the measured live sets." : "");

  function drawHeat(width) {
    const list = chosen();
    const lines = policies.map((p) => byLive(list, p)).filter((l) => l.length);
    const x = liveAxis(list, width);
    const exit = prices.submission_ns;
    const [low, high] = [Math.min(100, exit > 0 ? exit / 3 : 100), Math.max(30000, exit * 3)];
    const columns = x.sizes.length > 1 ? (width < NARROW ? 18 : 30) : 1;
    const steps = 22;
    const cells = [];
    const [x0, x1] = x.domain.map(Math.log);
    const [y0, y1] = [low, high].map(Math.log);
    for (let i = 0; i < columns; ++i) {
      for (let j = 0; j < steps; ++j) {
        const at = (k, n, a, b) => Math.exp(a + (b - a) * k / n);
        const live = columns > 1 ? at(i + 0.5, columns, x0, x1) : x.sizes[0];
        const exitNs = at(j + 0.5, steps, y0, y1);
        const ranked = lines.map((l) => ({policy: l[0].policy, cost: costAt(l, live, {submission_ns: exitNs})}))
          .sort((a, b) => a.cost - b.cost);
        const lead = ranked.length > 1 && ranked[0].cost > 0 ? ranked[1].cost / ranked[0].cost - 1 : 0;
        cells.push({live, exitNs, best: ranked[0].policy, cost: ranked[0].cost, lead, next: ranked[1]?.policy ?? "",
          xa: at(i, columns, x0, x1), xb: at(i + 1, columns, x0, x1), ya: at(j, steps, y0, y1), yb: at(j + 1, steps, y0, y1)});
      }
    }
    const plot = Plot.plot({
      width, height: 340, marginLeft: 58, marginRight: 16, marginTop: 24, marginBottom: 46,
      x: {type: "log", domain: x.domain, label: null}, y: {type: "log", domain: [low, high], label: null},
      color: policyColors, opacity: {type: "identity"},
      marks: [
        Plot.rect(cells, {x1: "xa", x2: "xb", y1: "ya", y2: "yb", fill: "best", shapeRendering: "crispEdges",
          fillOpacity: (c) => 0.4 + 0.6 * Math.min(1, c.lead / 0.5),
          tip: tip({cheapest: "best", "live pages": (c) => count(c.live), "cost of an exit": (c) => duration(c.exitNs),
            "per unmap": (c) => duration(c.cost), "next best": (c) => c.next ? `${c.next}, ${(100 * c.lead).toFixed(0)} % more` : "-"})}),
        Plot.axisX({ticks: x.ticks, tickFormat: x.tickFormat, label: "live pages →"}),
        Plot.axisY({ticks: decades(low, high), tickFormat: duration, label: "↑ cost of one exit", tickSize: 3}),
        ...(exit >= low && exit <= high ? [
          Plot.ruleY([exit], {stroke: "var(--fg)", strokeWidth: 1.5, strokeDasharray: "5,4"}),
          Plot.text([exit], {y: (d) => d, frameAnchor: "right", textAnchor: "end", dx: -6, dy: -9, fontWeight: 600,
            text: (d) => `${report.cost_preset}: ${duration(d)}`, fill: "var(--fg)", stroke: "var(--card)", strokeWidth: 4}),
        ] : []),
      ],
    });
    const winners = policies.filter((p) => cells.some((c) => c.best === p));
    return [plot, key(winners.map((p) => [p, colorOf(p)])), element("p", {class: "small muted"},
      "Pale where the runner-up costs nearly the same. ",
      exit > 0 ? "" : "Under this preset an exit costs nothing. ",
      "Counts as run, priced with another constant; between measured live sets interpolated.")];
  }

  const parts = [["guest", "guest: tables and queue"], ["exit", "exits"], ["walk", "reading guest tables"],
    ["dma", "map and unmap calls"], ["hw", "physical invalidations"], ["wait", "waiting for the queue"]];
  const partColor = {guest: "var(--part-guest)", exit: "var(--part-exit)", walk: "var(--part-walk)",
    dma: "var(--part-container)", hw: "var(--part-hardware)", wait: "var(--part-wait)"};
  function drawParts(width) {
    const list = chosen().filter((r) => r.live_pages === state.live);
    const bars = [];
    let longest = 0;
    for (const r of list) {
      const total = cost(r);
      longest = Math.max(longest, total);
      for (const [part, name] of parts) {
        const value = perUnmap(r, r.modelled_ns[part]);
        bars.push({policy: r.policy, part, name, value, shown: state.share ? (total ? 100 * value / total : 0) : value});
      }
    }
    const totals = list.map((r) => ({policy: r.policy, x: state.share ? 100 : cost(r), text: duration(cost(r))}));
    const ticks = steps(0, state.share ? 100 : longest || 1, width < NARROW ? 2 : 5);
    const used = parts.filter(([part]) => bars.some((b) => b.part === part && b.value > 0));
    return [Plot.plot({
      width, height: 60 + 44 * Math.max(list.length, 1), marginLeft: width < NARROW ? 84 : 116, marginRight: 74,
      marginTop: 8, marginBottom: 46,
      x: {label: state.share ? "share of the modelled time, %" : "modelled time per unmap →", domain: [0, state.share ? 100 : longest || 1],
        ticks, tickFormat: state.share ? undefined : duration},
      y: {label: null, domain: policies}, color: {domain: parts.map((p) => p[0]), range: parts.map((p) => partColor[p[0]])},
      marks: [
        Plot.gridX({stroke: "var(--grid)", strokeOpacity: 1, ticks}),
        Plot.barX(bars, {y: "policy", x: "shown", fill: "part", insetTop: 6, insetBottom: 6,
          order: parts.map((p) => p[0]), tip: tip({policy: "policy", part: "name", "per unmap": (b) => duration(b.value)})}),
        Plot.text(totals, {y: "policy", x: "x", text: "text", textAnchor: "start", dx: 6, fontWeight: 600}),
        Plot.ruleX([0]),
      ],
    }), key(used.map(([part, name]) => [name, partColor[part]]))];
  }

  function drawEntries(width) {
    const list = chosen();
    const wide = width >= NARROW;
    const x = liveAxis(list, width);
    const read = (r) => perUnmap(r, r.ptes_read);
    const changed = (r) => perUnmap(r, r.ptes_changed);
    const values = list.flatMap((r) => [read(r), changed(r)]);
    const domain = range(values, 1.6);
    const shown = (of) => list.filter((r) => of(r) > 0);
    const base = (extra) => Plot.plot({
      width, height: 340, marginLeft: 58, marginRight: wide ? 116 : 16, marginTop: 24, marginBottom: 46,
      x: {type: "log", domain: x.domain, label: null}, y: {type: "log", domain, label: null}, color: policyColors,
      marks: [
        Plot.axisX({ticks: x.ticks, tickFormat: x.tickFormat, label: "live pages →"}),
        Plot.axisY({ticks: decades(...domain), tickFormat: short, label: "↑ table entries per unmap", tickSize: 3}),
        Plot.gridY({ticks: decades(...domain), stroke: "var(--grid)", strokeOpacity: 1}),
        Plot.lineY(shown(changed), {x: liveOf, y: changed, stroke: "policy", strokeWidth: 1.6, strokeDasharray: "2,4", sort: "live_pages"}),
        Plot.lineY(shown(read), {x: liveOf, y: read, stroke: "policy", strokeWidth: 2.2, sort: "live_pages"}),
        Plot.dot(shown(changed), {x: liveOf, y: changed, stroke: "policy", fill: "var(--card)", r: 3}),
        Plot.dot(shown(read), {x: liveOf, y: read, fill: "policy", r: 3.5,
          tip: tip({policy: "policy", "live pages": (r) => count(r.live_pages), "read per unmap": (r) => short(read(r)),
            "changed per unmap": (r) => short(changed(r)), "read per changed": (r) => changed(r) ? short(read(r) / changed(r)) : "-"})}),
        ...extra,
      ],
    });
    const none = policies.filter((p) => !shown(read).some((r) => r.policy === p));
    const note = element("p", {class: "small muted"}, "Solid: read. Dotted: changed.",
      none.length ? ` Read none one by one: ${none.join(", ")}.` : "");
    if (!wide) return [base([]), note];
    const ends = policies.map((p) => byLive(shown(read), p).at(-1)).filter(Boolean)
      .map((r) => ({policy: r.policy, x: liveOf(r), y: read(r)}));
    return [base([Plot.text(endLabels(ends, base([])), {x: "x", y: "y", text: "policy", fill: "policy",
      textAnchor: "start", dx: 9, fontWeight: 600})]), note];
  }

  function drawExposure(width) {
    const list = chosen();
    const stale = list.map((r) => r.stale_page_seconds).filter((v) => v > 0);
    const [low, high] = stale.length ? [10 ** (Math.floor(Math.log10(Math.min(...stale))) - 1), Math.max(...stale) * 2.5] : [0.1, 10];
    const zero = low * 1.6;
    const x = (r) => r.stale_page_seconds > 0 ? r.stale_page_seconds : zero;
    const domain = range(list.map((r) => cost(r)), 1.8);
    const ticks = decades(low, high).filter((t) => t > low * 5);
    const seconds = (s) => s >= 1000 ? `${short(s)} s` : s >= 0.001 ? `${trim(s.toPrecision(3))} s` : s.toExponential(0) + " s";
    const largest = Math.max(...list.map((r) => r.live_pages));
    return [Plot.plot({
      width, height: 340, marginLeft: 58, marginRight: width < NARROW ? 16 : 40, marginTop: 24, marginBottom: 46,
      x: {type: "log", domain: [low, high], label: null}, y: {type: "log", domain, label: null}, color: policyColors, r: {type: "identity"},
      marks: [
        Plot.axisX({ticks: [zero, ...(width < NARROW ? ticks.filter((_, i) => i % 2 === 0) : ticks)],
          tickFormat: (t) => t === zero ? "none" : seconds(t), label: "stale page-seconds →"}),
        Plot.axisY({ticks: decades(...domain), tickFormat: duration, label: "↑ modelled time per unmap", tickSize: 3}),
        Plot.gridY({ticks: decades(...domain), stroke: "var(--grid)", strokeOpacity: 1}),
        Plot.ruleX([low * 4], {stroke: "var(--line)"}),
        Plot.line(list, {x, y: (r) => cost(r), stroke: "policy", strokeOpacity: 0.5, sort: "live_pages"}),
        Plot.dot(list, {x, y: (r) => cost(r), fill: "policy", fillOpacity: 0.85, r: (r) => r.live_pages === largest ? 6 : 3.5,
          tip: tip({policy: "policy", "live pages": (r) => count(r.live_pages), "per unmap": (r) => duration(cost(r)),
            "stale page-seconds": (r) => trim(r.stale_page_seconds.toPrecision(3)), "oldest": (r) => duration(1e9 * r.stale_age_max_seconds),
            "stale accesses that succeeded": (r) => count(r.stale_dma_hits),
            "pages reused while stale": (r) => count(r.reused_while_stale_pages)})}),
      ],
    }), key(policies.map((p) => [p, colorOf(p)])), element("p", {class: "small muted"},
      `Lower left is better. Lines follow the live set; the large dot is ${count(largest)} live pages.`)];
  }

  function drawStrategies(width) {
    const list = rows.filter((r) => r.vcpus === state.vcpus && r.live_pages === state.live);
    const domain = range(list.map((r) => cost(r)), 1.4);
    return [Plot.plot({
      width, height: 60 + 30 * policies.length * Math.max(1, strategies.length * 0.6), marginLeft: width < NARROW ? 86 : 100,
      marginRight: width < NARROW ? 84 : 116, marginTop: 8, marginBottom: 46,
      x: {type: "log", domain, label: null}, y: {domain: strategies, label: null}, fy: {domain: policies, label: null, padding: 0.15},
      color: policyColors,
      marks: [
        Plot.axisX({ticks: width < NARROW ? decades(...domain).filter((_, i) => i % 2 === 0) : decades(...domain), tickFormat: duration,
          label: "modelled time per unmap →"}),
        Plot.axisY({tickSize: 0}),
        Plot.gridX({ticks: decades(...domain), stroke: "var(--grid)", strokeOpacity: 1}),
        Plot.ruleY(list, {y: "strategy", fy: "policy", x1: domain[0], x2: (r) => cost(r), stroke: "policy", strokeWidth: 2.5, strokeOpacity: 0.45}),
        Plot.dot(list, {x: (r) => cost(r), y: "strategy", fy: "policy", fill: "policy", r: 4,
          tip: tip({policy: "policy", strategy: "strategy", "per unmap": (r) => duration(cost(r)),
            "entries read per unmap": (r) => short(perUnmap(r, r.ptes_read)), "bytes read per unmap": (r) => short(perUnmap(r, r.bytes_read))})}),
      ],
    })];
  }

  function drawLatency(width) {
    const list = chosen();
    const bars = list.flatMap((r) => [{...r, which: "p50", ns: r.wall_ns_per_unmap_p50}, {...r, which: "p99", ns: r.wall_ns_per_unmap_p99}])
      .filter((b) => b.ns > 0);
    const ranges = list.filter((r) => r.wall_ns_per_unmap_p50 > 0);
    const domain = range(bars.map((b) => b.ns), 1.5);
    const sizes = unique(list.map((r) => r.live_pages)).sort((a, b) => a - b);
    return [Plot.plot({
      width, height: 50 + policies.length * Math.max(44, 17 * sizes.length), marginLeft: width < NARROW ? 54 : 66,
      marginRight: width < NARROW ? 84 : 116, marginTop: 8, marginBottom: 46,
      x: {type: "log", domain, label: null}, y: {domain: sizes, label: null, tickFormat: short, type: "band"},
      fy: {domain: policies, label: null, padding: 0.12}, color: policyColors,
      marks: [
        Plot.axisX({ticks: decades(...domain), tickFormat: duration, label: "wall time of one unmap, p50 (filled) to p99 (hollow) →"}),
        Plot.gridX({ticks: decades(...domain), stroke: "var(--grid)", strokeOpacity: 1}),
        Plot.axisY({tickSize: 0, tickFormat: short}),
        Plot.link(ranges, {x1: "wall_ns_per_unmap_p50", x2: "wall_ns_per_unmap_p99", y1: "live_pages", y2: "live_pages", fy: "policy",
          stroke: "policy", strokeWidth: 2.5, strokeOpacity: 0.6}),
        Plot.dot(bars, {x: "ns", y: "live_pages", fy: "policy", stroke: "policy", fill: (b) => b.which === "p50" ? colorOf(b.policy) : "var(--card)",
          r: 3.5, tip: tip({policy: "policy", "live pages": (b) => count(b.live_pages), percentile: "which", wall: (b) => duration(b.ns)})}),
      ],
    })];
  }

  // What the tornado moves, as a function of changed constants; text: how people read it. A pair that
  // never swaps places has no flip: NaN.
  function tornadoAnswer(row) {
    const other = chosen().find((r) => r.policy === "strict" && r.live_pages === state.live);
    if (state.answer === "ratio" && other) {
      return {of: (c) => cost(row, c) / cost(other, c), text: (v) => `${trim(digits(v))}×`, label: "cost per unmap over strict's →"};
    }
    if (state.answer === "flip") {
      const [first, second] = [byLive(chosen(), row.policy), byLive(chosen(), "strict")];
      return {of: (c) => crossings(first, second, c)[0]?.live ?? NaN, text: count, label: "live pages at which it and strict swap places →"};
    }
    return {of: (c) => cost(row, c), text: duration, label: "modelled time per unmap →"};
  }

  function drawTornado(width) {
    const say = (text) => [element("p", {class: "muted"}, text)];
    const row = chosen().find((r) => r.policy === state.policy && r.live_pages === state.live);
    if (!row) return say("This combination was not run.");
    const answer = tornadoAnswer(row);
    const base = answer.of({});
    if (!Number.isFinite(base)) return say("These two do not swap places between the measured live sets.");
    const all = constants.filter((c) => c.high_ns > c.low_ns).map((c) => ({name: c.name.replace(/_ns/, "").replaceAll("_", " "),
      low: answer.of({[c.name]: c.low_ns}), high: answer.of({[c.name]: c.high_ns}), c}));
    const lost = all.filter((b) => Number.isNaN(b.low + b.high)).map((b) => b.name);
    const bars = all.filter((b) => Math.abs(b.high - b.low) > 0.001 * base)
      .sort((a, b) => Math.abs(b.high - b.low) - Math.abs(a.high - a.low)).slice(0, 10);
    if (!bars.length) return say("No constant of this preset has a range that matters here.");
    const values = bars.flatMap((b) => [b.low, b.high, base]);
    const [lowest, highest] = [Math.min(...values), Math.max(...values)];
    const ticks = steps(lowest, highest, width < NARROW ? 2 : 5);
    const sides = bars.flatMap((b) => [{...b, from: b.low, to: base, side: "low"}, {...b, from: base, to: b.high, side: "high"}]);
    const ends = bars.map((b) => ({...b, text: `${duration(b.c.low_ns)} – ${duration(b.c.high_ns)}`}));
    const note = lost.length ? say(`With ${lost.join(", ")} at an end of its range they do not swap places between the measured live sets.`) : [];
    const plot = Plot.plot({
      width, height: 66 + 30 * bars.length, marginLeft: width < NARROW ? 124 : 150, marginRight: width < NARROW ? 24 : 130, marginTop: 22, marginBottom: 46,
      x: {domain: [lowest, highest], label: answer.label, ticks, tickFormat: answer.text},
      y: {domain: bars.map((b) => b.name), label: null}, color: {domain: ["low", "high"], range: ["var(--part-container)", "var(--part-exit)"]},
      marks: [
        Plot.gridX({stroke: "var(--grid)", strokeOpacity: 1, ticks}),
        Plot.barX(sides, {y: "name", x1: "from", x2: "to", fill: "side", insetTop: 4, insetBottom: 4,
          tip: tip({constant: (b) => b.c.name, range: (b) => `${duration(b.c.low_ns)} – ${duration(b.c.high_ns)}`,
            answer: (b) => `${answer.text(b.low)} – ${answer.text(b.high)}`, certainty: (b) => b.c.certainty})}),
        Plot.ruleX([base], {stroke: "var(--fg)"}),
        Plot.text([base], {x: (d) => d, frameAnchor: "top", dy: -12, text: answer.text, fontWeight: 600}),
        ...(width < NARROW ? [] : [Plot.text(ends, {y: "name", frameAnchor: "right", textAnchor: "start", dx: 10, text: "text", fill: "var(--muted)"})]),
      ],
    });
    plot.dataset.base = base;
    return [plot, key([["constant at its low end", "var(--part-container)"], ["at its high end", "var(--part-exit)"]]), ...note];
  }

  // ---- the page -----------------------------------------------------------------------------
  const lives = unique(rows.map((r) => r.live_pages)).sort((a, b) => a - b);
  const liveChoice = (name) => choice(name, "live pages", lives, count, () => state.live, (v) => { state.live = v; });
  const charts = [
    {id: "cost", draw: drawCost, title: "What an unmap costs", text: "Modelled time per unmap against the pages that stay mapped meanwhile."},
    {id: "heat", draw: drawHeat, title: "Which policy wins", text: "Cheapest policy for a live set and a cost of one exit; find your own machine on it."},
    {id: "exposure", draw: drawExposure, title: "What exposure buys", text: "Pages times seconds that a device could still reach after their unmap, against cost."},
    {id: "entries", draw: drawEntries, title: "Work and wasted work", text: "Guest table entries the hypervisor reads per unmap, and shadow entries that change."},
    {id: "parts", draw: drawParts, title: "Where the time goes", text: "Modelled time per unmap by part.",
      tools: () => [liveChoice("parts-live"), choice("share", "show", [false, true], (v) => v ? "share" : "time", () => state.share, (v) => { state.share = v; })]},
    {id: "tornado", draw: drawTornado, title: "How sure is this?", text: "The answer when one constant at a time takes the ends of its cited range.",
      tools: () => [...(policies.includes("strict") ? [choice("tornado-answer", "answer", ["time", "ratio", "flip"],
        (v) => ({time: "time", ratio: "× strict", flip: "flip with strict"})[v], () => state.answer, (v) => { state.answer = v; })] : []), choice("tornado-policy", "policy", policies, (p) => p, () => state.policy, (v) => { state.policy = v; }), liveChoice("tornado-live")]},
    ...(strategies.length > 1 ? [{id: "strategies", draw: drawStrategies, title: "What the hypervisor's strategy does",
      text: "The same loads under every strategy of this run.", tools: () => [liveChoice("strategies-live")]}] : []),
    {id: "latency", draw: drawLatency, title: "Wall time of this run",
      text: "How long this lab's own unmap call took, gRPC included, by live pages. It is no figure of a hypervisor and enters nothing above."},
  ];
  function drawAll() {
    for (const chart of charts) {
      const width = Math.max(260, Math.floor(chart.box.clientWidth));
      chart.box.replaceChildren(...chart.draw(width));
      const svg = chart.box.querySelector("svg");
      if (svg) svg.setAttribute("aria-label", `${chart.title}. ${chart.text}`);
      if (chart.toolbox) chart.toolbox.replaceChildren(...chart.tools());
    }
  }
  const bar = document.getElementById("choices");
  if (strategies.length > 1) bar.append(choice("strategy", "hypervisor strategy", strategies, (s) => s, () => state.strategy, (v) => { state.strategy = v; }));
  if (vcpus.length > 1) bar.append(choice("vcpus", "vCPUs", vcpus, (n) => String(n), () => state.vcpus, (v) => { state.vcpus = v; }));
  bar.append(key(policies.map((p) => [p, colorOf(p)])));
  const grid = document.getElementById("charts");
  for (const chart of charts) {
    chart.box = element("div", {class: "plot"});
    const figure = element("figure", {id: chart.id, ...(chart.id === "latency" && charts.length % 2 ? {class: "wide"} : {})}, element("figcaption", {}, element("h3", {}, chart.title),
      element("p", {class: "small muted"}, chart.text)));
    if (chart.tools) figure.append(chart.toolbox = element("div", {class: "tools"}));
    figure.append(chart.box);
    grid.append(figure);
  }
  let drawn = 0;
  new ResizeObserver(() => {
    if (grid.clientWidth === drawn) return;
    drawn = grid.clientWidth;
    drawAll();
  }).observe(grid);

  // ---- the table: sorting and downloads -------------------------------------------------------
  const table = document.getElementById("rows");
  table.querySelectorAll("th").forEach((head, column) => {
    const button = element("button", {type: "button", title: "sort"}, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (tr) => tr.children[column].dataset.v ?? tr.children[column].textContent;
      const body = table.tBodies[0];
      const sorted = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const order = Number.isFinite(+x) && Number.isFinite(+y) ? x - y : x.localeCompare(y);
        return up ? order : -order;
      });
      body.append(...sorted);
    });
  });
  function flat(object, prefix = "", out = {}) {
    for (const [name, value] of Object.entries(object)) {
      if (value !== null && typeof value === "object") flat(value, `${prefix}${name}.`, out);
      else out[prefix + name] = value;
    }
    return out;
  }
  function csv() {
    const lines = rows.map((r) => flat(r));
    const columns = unique(lines.flatMap((l) => Object.keys(l)));
    const quote = (v) => /[",\n]/.test(String(v ?? "")) ? `"${String(v).replaceAll('"', '""')}"` : String(v ?? "");
    return [columns.map(quote).join(","), ...lines.map((l) => columns.map((c) => quote(l[c])).join(","))].join("\n") + "\n";
  }
  const offer = (id, text, type) => {
    document.getElementById(id).href = URL.createObjectURL(new Blob([text], {type}));
  };
  offer("csv", csv(), "text/csv");
  offer("json", JSON.stringify(report, null, 1) + "\n", "application/json");
})();
