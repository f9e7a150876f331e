// Live updates, keyboard and copying. Without this script the pages work, but do not renew themselves.
(() => {
  "use strict";

  const body = document.body;
  const root = body.dataset.root;
  const button = document.getElementById("live");
  const PAUSED = "gwpy-paused";
  let source = null;
  let wanted = false;
  let busy = false;
  let timer = 0;

  // Live updates: an event says that something changed, then the parts of this page are renewed.

  function isPaused() {
    try {
      return sessionStorage.getItem(PAUSED) === "1";
    } catch {
      return false;
    }
  }

  function isInUse() {
    const focused = document.activeElement;
    const typing = focused && focused.closest("[data-swap]") && /^(INPUT|SELECT|TEXTAREA)$/.test(focused.tagName);
    const open = document.querySelector("dialog[open], .more[open]");
    const selection = document.getSelection();
    return Boolean(typing || open || (selection && !selection.isCollapsed));
  }

  function keep(part) {
    const state = { open: [], chosen: [], focus: null, at: -1 };
    part.querySelectorAll("details").forEach((each, index) => {
      if (each.open) state.open.push(index);
    });
    part.querySelectorAll("input[type=checkbox]:checked").forEach((each) => state.chosen.push(each.value));
    const rows = [...part.querySelectorAll("tbody tr")];
    const at = rows.findIndex((row) => row.classList.contains("at"));
    if (at >= 0) state.at = idOf(rows[at]);
    const focused = document.activeElement;
    if (focused && part.contains(focused)) state.focus = focused.getAttribute("href");
    return state;
  }

  function restore(part, state) {
    const details = part.querySelectorAll("details");
    state.open.forEach((index) => {
      if (details[index]) details[index].open = true;
    });
    part.querySelectorAll("input[type=checkbox]").forEach((each) => {
      each.checked = state.chosen.includes(each.value);
    });
    part.querySelectorAll("tbody tr").forEach((row) => {
      if (state.at !== -1 && idOf(row) === state.at) row.classList.add("at");
    });
    if (state.focus) {
      const link = [...part.querySelectorAll("a")].find((each) => each.getAttribute("href") === state.focus);
      if (link) link.focus({ preventScroll: true });
    }
  }

  function swap(fresh) {
    document.querySelectorAll("[data-swap]").forEach((part) => {
      const next = fresh.getElementById(part.id);
      if (!next || next.innerHTML === part.innerHTML) return;
      const state = keep(part);
      const scrolled = [...part.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
      part.replaceChildren(...document.importNode(next, true).childNodes);
      restore(part, state);
      part.querySelectorAll(".scroll").forEach((each, index) => {
        each.scrollLeft = scrolled[index] || 0;
      });
    });
  }

  async function renew() {
    if (busy || !wanted || document.hidden || isPaused()) return;
    if (isInUse()) {
      later(1000);
      return;
    }
    busy = true;
    wanted = false;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" } });
      if (answer.redirected && new URL(answer.url).pathname.endsWith("/login")) {
        location.reload();
      } else if (answer.ok || answer.status === 404) {
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        if (!isInUse()) swap(fresh);
        else wanted = true;
      }
    } catch {
      wanted = true;
    } finally {
      busy = false;
    }
    if (wanted) later(2000);
  }

  function later(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(renew, milliseconds);
  }

  function changed() {
    wanted = true;
    later(50);
  }

  function connect() {
    if (source || isPaused() || document.hidden) return;
    let first = true;
    source = new EventSource(`${root}/api/v1/events`);
    source.onopen = () => button.removeAttribute("data-broken");
    source.onerror = () => button.setAttribute("data-broken", "");
    // The current state comes first: the page has it, unless it was hidden or cut off meanwhile.
    ["stats", "workers", "troubles", "trouble"].forEach((topic) => {
      source.addEventListener(topic, () => {
        if (!first) changed();
      });
    });
    setTimeout(() => {
      first = false;
      changed();
    }, 1500);
  }

  function disconnect() {
    if (source) source.close();
    source = null;
  }

  function show() {
    const paused = isPaused();
    button.setAttribute("aria-pressed", String(!paused));
    button.title = paused ? "Resume live updates" : "Pause live updates";
    button.querySelector(".word").textContent = paused ? "Paused" : "Live";
  }

  if (button && "live" in body.dataset && document.querySelector("[data-swap]")) {
    button.hidden = false;
    show();
    connect();
    button.addEventListener("click", () => {
      try {
        sessionStorage.setItem(PAUSED, isPaused() ? "0" : "1");
      } catch {
        return;
      }
      show();
      if (isPaused()) {
        disconnect();
      } else {
        connect();
        changed();
      }
    });
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        disconnect();
      } else {
        connect();
        changed();
      }
    });
    addEventListener("pagehide", disconnect);
  }

  // Ages and charts go on without any event.
  setInterval(() => {
    if (source) changed();
  }, 10000);

  // Keyboard.

  function idOf(row) {
    const link = row.querySelector("a");
    return link ? link.getAttribute("href") : row.textContent;
  }

  function move(step) {
    const rows = [...document.querySelectorAll("[data-rows] tbody tr")];
    if (!rows.length) return;
    const now = rows.findIndex((row) => row.classList.contains("at"));
    const next = Math.min(Math.max(now + step, 0), rows.length - 1);
    if (now >= 0) rows[now].classList.remove("at");
    rows[next].classList.add("at");
    rows[next].scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input, select, textarea, dialog[open]")) return;
    const row = document.querySelector("tr.at");
    if (event.key === "/") {
      const field = document.querySelector("input[type=search]");
      if (!field) return;
      event.preventDefault();
      field.focus();
      field.select();
    } else if (event.key === "j") {
      move(1);
    } else if (event.key === "k") {
      move(-1);
    } else if (event.key === "x" && row) {
      const box = row.querySelector("input[type=checkbox]");
      if (box) box.checked = !box.checked;
    } else if (event.key === "Enter" && row && event.target === body) {
      const link = row.querySelector("a");
      if (link) location.assign(link.href);
    } else if (event.key === "?") {
      document.getElementById("keys").showModal();
    }
  });

  // One menu is open at a time, and closes when something else is clicked.
  document.addEventListener("click", (event) => {
    document.querySelectorAll(".more[open]").forEach((menu) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
  });

  // Copying.
  if (navigator.clipboard) {
    document.querySelectorAll("[data-copy]").forEach((each) => {
      each.hidden = false;
      each.addEventListener("click", async () => {
        await navigator.clipboard.writeText(document.getElementById(each.dataset.copy).textContent);
        each.textContent = "Copied";
        setTimeout(() => {
          each.textContent = "Copy";
        }, 1500);
      });
    });
  }
})();
