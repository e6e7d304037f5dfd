"use strict";
// A peer without a server: whom it speaks to, how much, and how long ago it last heard of them.

(() => {
  const { $, setText, bytes, count, plural } = Base;
  const { panel, table } = Panels;
  const SIDE = 320, RADIUS = 118, FRESH = 1, OLD = 5;

  function svg(tag, props, ...children) {
    const element = document.createElementNS($(".brand svg").namespaceURI, tag);
    for (const [key, value] of Object.entries(props)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  const short = (name) => (name.length > 14 ? `${name.slice(0, 13)}…` : name);

  /** How long ago a peer was heard of, in words; `age` in rounds. */
  const ago = (link, age) => (link.gone ? "gone" : !link.heard ? "–" : age <= 0 ? "this round" : `${plural(age, "round")} ago`);

  const kind = (link, age) => (link.gone ? "gone" : !link.heard ? (link.sent ? "fresh" : "old") : age > OLD ? "old" : age >= FRESH ? "late" : "fresh");

  function graph(run, rows) {
    const most = Math.max(1, ...rows.map((row) => row.link.sent + row.link.received));
    const peers = run.start.peers;
    const at = (name) => {
      const angle = (2 * Math.PI * peers.indexOf(name)) / peers.length - Math.PI / 2;
      return [SIDE / 2 + RADIUS * Math.cos(angle), SIDE / 2 + RADIUS * Math.sin(angle)];
    };
    const own = at(run.start.peer), linked = new Map(rows.map((row) => [row.name, row]));
    const lines = rows.map((row) => {
      const [x, y] = at(row.name);
      const line = svg("line", { class: kind(row.link, row.age), x1: own[0], y1: own[1], x2: x, y2: y, "stroke-width": 1 + (5 * (row.link.sent + row.link.received)) / most });
      line.append(svg("title", {}));
      line.firstChild.textContent = `${row.name}: ${bytes(row.link.sent)} to it, ${bytes(row.link.received)} from it, last heard ${ago(row.link, row.age)}`;
      return line;
    });
    const few = peers.length <= 32;
    const dots = peers.flatMap((name) => {
      const [x, y] = at(name), row = linked.get(name), self = name === run.start.peer;
      const dot = svg("circle", { class: self ? "self" : row ? kind(row.link, row.age) : "far", cx: x, cy: y, r: self ? 8 : few ? 6 : 3 });
      if (!few && !self && !row) return [dot];
      const label = svg("text", { x: SIDE / 2 + (x - SIDE / 2) * 1.17, y: SIDE / 2 + (y - SIDE / 2) * 1.17 + 4, "text-anchor": x < SIDE / 2 - 20 ? "end" : x > SIDE / 2 + 20 ? "start" : "middle" });
      label.textContent = short(name);
      return [dot, label];
    });
    const there = rows.filter((row) => !row.link.gone).length;
    return svg("svg", { viewBox: `-70 0 ${SIDE + 140} ${SIDE}`, role: "img", "aria-label": `${run.start.peer} among ${count(peers.length)} peers, with links to ${count(rows.length)} of them, ${count(there)} of whom are there` }, ...lines, ...dots);
  }

  panel("neighbours", (run) => Boolean(run.start.peers && run.links.size), (section) => (run) => {
    const last = run.rounds.length ? run.rounds[run.rounds.length - 1].round : 0;
    const rows = [...run.links].map(([name, link]) => ({ name, link, age: last - link.heard })).sort((a, b) => run.start.peers.indexOf(a.name) - run.start.peers.indexOf(b.name));
    $(".circle", section).replaceChildren(graph(run, rows));
    $(".links", section).replaceChildren(table(
      ["Peer", "Sent to it", "Received", "Last heard", "Rounds without it"],
      rows.map(({ name, link, age }) => [name, bytes(link.sent), bytes(link.received), ago(link, age), count(link.missed)])));
    const gone = rows.filter((row) => row.link.gone).map((row) => row.name);
    setText($(".note", section), gone.length ? `Given up: ${gone.join(", ")}. They count again once they are heard.` : "All of them are there.");
  });
})();
