"use strict";
// Where the events come from (this file, or a server), which view is shown, and when panels are drawn.

(() => {
  const { $, h, setText, count } = Base;
  const inline = $("#atoll-data") ? JSON.parse($("#atoll-data").textContent) : null;
  const hrefs = {
    run: (name) => `#run=${encodeURIComponent(name)}`,
    compare: (names) => `#compare=${names.map(encodeURIComponent).join(",")}`,
  };

  // --- drawing --------------------------------------------------------------------------------------------

  const LATER = 1500; // ms between two drawings of panels that nobody sees
  let run = null;
  let asked = 0;
  let since = null; // when the oldest event that is not drawn arrived
  let later = 0;
  const open = (client, among) => ClientView.open(run, client, among);
  const panels = Panels.all.map(({ id, has, make }) => ({ id, has, make, section: $(`#${id}`), update: null, stale: true, seen: false }));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      const panel = panels.find((each) => each.section === entry.target);
      panel.seen = entry.isIntersecting;
      if (panel.seen && panel.stale) ask();
    }
  }, { rootMargin: "240px 0px" });
  for (const panel of panels) watch.observe(panel.section);

  /** Draw soon: once a frame, however many events come. */
  function ask() {
    if (!asked) asked = requestAnimationFrame(() => { asked = 0; draw(); });
  }

  function changed(arrived = performance.now()) {
    if (since === null) since = arrived;
    for (const panel of panels) panel.stale = true;
    title(); // a tab in the background draws nothing, but its title is seen
    ask();
  }

  function draw(everything = false) {
    if (!run) return;
    Hero.update(run);
    let shape = "";
    for (const panel of panels) {
      panel.section.hidden = !panel.has(run);
      if (!panel.section.hidden) shape += `${panel.id} `;
    }
    jump(shape);
    for (const panel of panels) if ((panel.seen || everything) && panel.stale) refresh(panel);
    ClientView.update(run);
    if (since !== null) {
      performance.measure("atoll-update", { start: since, end: performance.now() });
      since = null;
    }
    if (!later && panels.some((panel) => panel.stale && !panel.section.hidden)) {
      later = setTimeout(() => { later = 0; rest(); }, everything ? 0 : panels.some((p) => !p.update) ? 30 : LATER);
    }
  }

  function refresh(panel) {
    if (panel.section.hidden || !run) return;
    panel.stale = false;
    if (!panel.update) panel.update = panel.make(panel.section, open);
    panel.update(run);
  }

  /** Draw what is out of sight, one panel at a time, so that scrolling finds it there. */
  function rest() {
    const panel = panels.find((each) => each.stale && !each.section.hidden);
    if (!panel || !run) {
      if (run && !document.body.dataset.ready) ready();
      return;
    }
    refresh(panel);
    setTimeout(rest, 0);
  }

  function ready() {
    document.body.dataset.ready = "yes";
    performance.measure("atoll-ready", { start: 0, end: performance.now() });
  }

  function jump(shape) {
    const host = $("#jump");
    if (host.dataset.shape === shape) return;
    host.dataset.shape = shape;
    host.replaceChildren(...panels.filter((panel) => !panel.section.hidden).map(({ id, section }) =>
      h("li", null, h("a", { href: `#${id}`, onclick: (event) => {
        event.preventDefault(); // the part after # names the view
        section.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
        const heading = $("h2", section);
        heading.tabIndex = -1;
        heading.focus({ preventScroll: true });
      } }, $("h2", section).textContent))));
  }

  function title() {
    const at = run.status === "running" && run.planned ? `${run.played}/${run.planned} ` : "";
    const text = `${at}${run.title} · Atoll`;
    if (document.title !== text) document.title = text;
  }

  function showRun(next, arrived) {
    const fresh = !run || run.name !== next.name;
    run = next;
    view("run");
    if (fresh) scrollTo(0, 0);
    changed(arrived);
  }

  // --- views ----------------------------------------------------------------------------------------------

  function view(name) {
    for (const each of ["list", "compare", "run"]) $(`#view-${each}`).hidden = each !== name;
    $("#loading").hidden = name !== null;
    $("#bar-status").hidden = name !== "run";
    $("#bar-progress").parentNode.hidden = name !== "run";
    if (name !== "run") {
      run = null;
      if ($("#client").open) $("#client").close();
    }
  }

  /** Where we are, as links: everything above the run. */
  function crumb(...parts) {
    $("#crumb").replaceChildren(...parts.filter(Boolean).map(([text, href]) => (href ? h("a", { href }, text) : h("span", null, text))));
  }

  function trouble(text) {
    view(null);
    setText($("#loading"), text);
  }

  function route() {
    const [kind, rest] = location.hash.slice(1).split(/=(.*)/s);
    const names = (rest || "").split(",").filter(Boolean).map(decodeURIComponent);
    if (inline) Saved.show(kind, names);
    else Live.show(kind, names);
  }

  /** A run with what an audit of it found, if there was one. */
  function audited(made, found) {
    made.audit = found.audit ? found.audit.page : null;
    made.auditedAfter = found.audit ? found.audit.rounds : 0;
    return made;
  }

  // --- a report: everything is in the file ----------------------------------------------------------------

  const Saved = (() => {
    const made = new Map();

    function get(name) {
      const found = inline.runs.find((each) => each.name === name);
      if (found && !made.has(name)) made.set(name, audited(new Run(name, found.events, found.status), found));
      return made.get(name) || null;
    }

    const briefly = (each) => ({
      name: each.name, status: each.status, round: each.played,
      value: each.judgedLast ? each.mainOf(each.judgedLast.evaluation) : null,
    });

    function show(kind, names) {
      const several = inline.runs.length !== 1;
      const chosen = kind === "run" ? get(names[0]) : several ? null : get(inline.runs[0].name);
      if (chosen) {
        crumb(several ? [inline.title, "#"] : null, [chosen.name]);
        showRun(chosen);
        return;
      }
      view("compare");
      crumb([inline.title]);
      document.title = `${inline.title} · Atoll`;
      const runs = inline.runs.map((each) => get(each.name));
      Comparison.show(inline.title, inline.comparison || Comparison.ofRuns(runs), runs.map(briefly), hrefs);
      if (!document.body.dataset.ready) ready();
    }

    return { show };
  })();

  // --- live: a server sends events as they are written ----------------------------------------------------

  const Live = (() => {
    const PACE = 2500; // ms between two looks at the list
    let stream = null;
    let timer = 0;
    let last = null; // byte after the last line that was received

    async function json(path) {
      const answer = await fetch(path, { cache: "no-store" });
      if (!answer.ok) throw new Error((await answer.text()) || answer.statusText);
      return answer.json();
    }

    function stop() {
      if (stream) stream.close();
      stream = null;
      clearTimeout(timer);
      wire("");
    }

    function wire(text, lost = false) {
      $("#wire").hidden = !text;
      setText($("#wire"), text);
      $("#wire").classList.toggle("lost", lost);
    }

    function show(kind, names) {
      stop();
      if (kind === "run" && names.length) follow(names[0]);
      else if (kind === "compare" && names.length) compare(names);
      else list();
    }

    async function list() {
      try {
        const found = await json("runs.json");
        if (found.only) { follow(found.only, true); return; }
        if (location.hash.length > 1) return;
        view("list");
        crumb();
        document.title = "Runs · Atoll";
        RunList.show(found.runs, found.place, hrefs);
        wire("live");
        if (!document.body.dataset.ready) ready();
      } catch (error) {
        wire("reconnecting", true);
        if (!$("#loading").hidden) trouble(`No answer from the server: ${error.message}`);
      }
      timer = setTimeout(list, PACE);
    }

    async function compare(names) {
      const here = location.hash;
      try {
        const found = await json(`compare.json?${names.map((name) => `run=${encodeURIComponent(name)}`).join("&")}`);
        if (location.hash !== here) return;
        view("compare");
        crumb(["Runs", "#"], ["Comparison"]);
        document.title = "Comparison · Atoll";
        Comparison.show("Comparison", found.comparison, found.runs, hrefs);
        wire("live");
        if (found.runs.some((each) => each.status === "running")) timer = setTimeout(() => compare(names), PACE * 2);
      } catch (error) {
        if (location.hash === here) trouble(`These runs cannot be compared: ${error.message}`);
      }
    }

    function follow(name, only = false) {
      crumb(only ? null : ["Runs", "#"], [name]);
      if (!run || run.name !== name) { view(null); setText($("#loading"), "Reading the run …"); }
      last = null;
      connect(name);
    }

    function connect(name) {
      if (stream) stream.close();
      const path = name.split("/").map(encodeURIComponent).join("/");
      const source = new EventSource(`runs/${path}/events${last === null ? "" : `?after=${last}`}`);
      stream = source;
      source.onopen = () => wire("live");
      source.addEventListener("snapshot", (message) => {
        const arrived = performance.now();
        const found = JSON.parse(message.data);
        last = message.lastEventId;
        showRun(audited(new Run(name, found.events, found.status), found), arrived);
      });
      source.onmessage = (message) => {
        const arrived = performance.now();
        last = message.lastEventId;
        const event = JSON.parse(message.data);
        if (event.event === "resume") { last = null; connect(name); return; } // rounds are void: start from what holds
        if (run && run.apply(event)) changed(arrived);
      };
      source.addEventListener("status", (message) => {
        if (!run) return;
        run.told = JSON.parse(message.data).status;
        changed();
      });
      source.addEventListener("gone", () => { stop(); trouble(`${name} is no longer there.`); });
      source.onerror = () => {
        if (stream !== source) return;
        if (run && run.ending) wire("no longer served"); // the run is over, and its page is all here
        else wire("reconnecting", true);
        if (source.readyState === EventSource.CLOSED) timer = setTimeout(() => { if (stream === source) connect(name); }, 1500);
      };
    }

    return { show };
  })();

  // --- theme ----------------------------------------------------------------------------------------------

  const wanted = matchMedia("(prefers-color-scheme: dark)");
  let theme = "auto";
  try { theme = localStorage.getItem("atoll-theme") || "auto"; } catch { /* a page from a file may not remember */ }

  function paint(now = theme) {
    document.documentElement.dataset.theme = now === "auto" ? (wanted.matches ? "dark" : "light") : now;
    setText($("#theme-name"), theme[0].toUpperCase() + theme.slice(1));
    Base.forgetColors();
    Draw.redrawAll();
    Comparison.again();
    if (run) { changed(); draw(true); }
  }

  $("#theme").addEventListener("click", () => {
    theme = { auto: "light", light: "dark", dark: "auto" }[theme] || "auto";
    try { localStorage.setItem("atoll-theme", theme); } catch { /* as above */ }
    paint();
  });
  wanted.addEventListener("change", () => paint());
  addEventListener("beforeprint", () => paint("light"));
  addEventListener("afterprint", () => paint());

  // --- beginning ------------------------------------------------------------------------------------------

  paint();
  addEventListener("hashchange", route);
  setInterval(() => { if (run && run.status === "running") Hero.clockOf(run); }, 1000);
  route();
})();
