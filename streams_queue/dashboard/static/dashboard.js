// Keeps a page up to date by server-sent events. Without it every page works, and shows the moment it was loaded.
"use strict";

(() => {
  const state = document.getElementById("live-state");
  const address = document.body.dataset.live;

  const say = (words, kind) => {
    if (state.textContent === words) return;
    state.hidden = false;
    state.textContent = words;
    state.className = `live ${kind}`;
  };

  // A part is replaced as a whole: what has the focus in it keeps it, boxes stay where they were scrolled to, and what
  // is being selected is left alone.
  const replace = (part, html) => {
    const selection = document.getSelection();
    if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) return;
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    const focusable = "a[href], button, input, pre[tabindex]";
    const place = active ? [...part.querySelectorAll(focusable)].indexOf(active) : -1;
    const scrolled = [...part.querySelectorAll(".scroll, pre")].map((box) => [box.scrollLeft, box.scrollTop]);
    part.innerHTML = html;
    part.querySelectorAll(".scroll, pre").forEach((box, n) => box.scrollTo(...(scrolled[n] ?? [0, 0])));
    if (!active) return;
    const found = [...part.querySelectorAll(focusable)];
    const same = found.find((one) => active.hasAttribute("href") && one.getAttribute("href") === active.getAttribute("href"));
    (same ?? found[place])?.focus({ preventScroll: true });
  };

  // A browser keeps few connections to a server open: a page that nobody sees takes none.
  let source = null;
  const listen = () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (!source) {
      source = new EventSource(address);
      source.addEventListener("parts", (event) => {
        for (const [name, html] of Object.entries(JSON.parse(event.data))) {
          const part = document.getElementById(name);
          if (part) replace(part, html);
        }
        say("live", "on");
      });
      source.addEventListener("away", () => say("the server is away", "off"));
      source.addEventListener("error", () => say("not live", "off"));
    }
  };

  if (address && "EventSource" in window) {
    listen();
    document.addEventListener("visibilitychange", listen);
    window.addEventListener("pagehide", () => source?.close());
    window.addEventListener("pageshow", (event) => {
      if (event.persisted) {
        source = null;
        listen();
      }
    });
  }

  const all = document.getElementById("mark-all");
  if (all) {
    const marks = [...document.querySelectorAll('input[type="checkbox"][name="id"]')];
    const tell = () => {
      const marked = marks.filter((mark) => mark.checked).length;
      all.checked = marked === marks.length;
      all.indeterminate = marked > 0 && marked < marks.length;
    };
    all.hidden = false;
    all.addEventListener("change", () => {
      for (const mark of marks) mark.checked = all.checked;
    });
    for (const mark of marks) mark.addEventListener("change", tell);
    window.addEventListener("pageshow", tell); // a browser that goes back brings the marks back
  }
})();
