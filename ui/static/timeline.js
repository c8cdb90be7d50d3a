// What happened, as a list with times and small pictures, each to be seen large. All text stays text.

const MOST = 1000; // moments on the page; the exports have them all
const NEAR_PX = 48; // so near to the end of the list counts as at the end
const SPOKEN = 5; // latest texts, for screen readers

export class Timeline {
  #list; #scroll; #nothing; #newest; #spoken; #large;
  #moments = new Map(); // by id
  #follows = true; // to the newest; who has scrolled back is left there
  #placed = 0; // where following put the list: less, and the reader has scrolled back
  #inOrder = null; // the moment that Tab leads to; arrows lead to the others

  constructor() {
    const find = (id) => document.getElementById(id);
    this.#list = find("timeline");
    this.#scroll = find("scroll");
    this.#nothing = find("nothing");
    this.#newest = find("newest");
    this.#spoken = find("spoken");
    this.#large = new Large(() => this.#pictured);
    this.#newest.onclick = () => this.#toEnd();
    this.#scroll.onscroll = () => {
      this.#follows = this.#atEnd;
      if (this.#follows) this.#newest.hidden = true;
    };
    new ResizeObserver(() => this.#follows && this.#toEnd()).observe(this.#scroll);
    this.#list.onkeydown = (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const pictured = this.#pictured;
      const next = pictured[pictured.indexOf(this.#inOrder) + by];
      if (next) this.#putInOrder(next).focus();
    };
  }

  clear() {
    for (const moment of this.#moments.values()) moment.remove();
    this.#moments.clear();
    this.#list.replaceChildren();
    this.#placed = 0;
    this.#spoken.replaceChildren();
    this.#nothing.hidden = false;
    this.#newest.hidden = true;
  }

  // The next words of what is being said.
  add(id, kind, time, words) {
    this.#change(() => this.#moment(id, kind).add(time, words));
  }

  // A question that waits for its answer.
  ask(id, question) {
    this.#moment(id, "answer").setQuestion(question);
    this.#toEnd();
  }

  // The whole of it.
  say(id, kind, time, text) {
    this.#change(() => this.#moment(id, kind).finish(time, text));
    const line = document.createElement("p");
    line.textContent = text;
    this.#spoken.append(line);
    while (this.#spoken.children.length > SPOKEN) this.#spoken.firstChild.remove();
  }

  // What the journal held of the moments that an answer was recalled from.
  recall(id, recalled) {
    this.#change(() => this.#moments.get(id)?.recall(recalled));
  }

  // The picture of a moment (a Blob) whose whole text has come.
  illustrate(id, picture) {
    const moment = this.#moments.get(id);
    if (!moment || moment.url) return;
    this.#change(() => moment.illustrate(picture));
    if (!this.#list.contains(document.activeElement)) this.#putInOrder(moment);
  }

  showLatest() {
    this.#large.open(this.#pictured.at(-1));
  }

  get #pictured() {
    return [...this.#moments.values()].filter((moment) => moment.url);
  }

  #putInOrder(moment) {
    if (this.#inOrder) this.#inOrder.button.tabIndex = -1;
    this.#inOrder = moment;
    moment.button.tabIndex = 0;
    return moment.button;
  }

  #moment(id, kind) {
    let moment = this.#moments.get(id);
    if (!moment) {
      moment = new Moment(kind, () => this.#large.open(moment));
      this.#moments.set(id, moment);
      this.#list.append(moment.item);
      this.#nothing.hidden = true;
      if (this.#moments.size > MOST) {
        const [oldest] = this.#moments.keys();
        this.#moments.get(oldest).remove();
        this.#moments.delete(oldest);
      }
    }
    return moment;
  }

  get #atEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroll;
    return scrollHeight - scrollTop - clientHeight < NEAR_PX;
  }

  #toEnd() {
    this.#follows = true;
    this.#scroll.scrollTop = this.#scroll.scrollHeight;
    this.#placed = this.#scroll.scrollTop;
    this.#newest.hidden = true;
  }

  #change(how) {
    // The browser tells of scrolling later than it scrolls.
    const follows = this.#follows && this.#scroll.scrollTop >= this.#placed;
    how();
    if (follows) this.#toEnd();
    else this.#newest.hidden = false;
  }
}

class Moment {
  url = null;
  time = "";
  text = "";
  button = element("button", "thumb");

  #time = element("time"); #question = element("p", "question"); #text = element("p", "text");
  #image = element("img");

  constructor(kind, onopen) {
    this.item = element("li", `moment ${kind}`);
    const words = element("div", "words");
    this.#question.hidden = true;
    words.append(this.#question, this.#text);
    this.button.type = "button";
    this.button.tabIndex = -1;
    this.button.onclick = onopen;
    this.button.append(this.#image);
    this.#image.alt = "";
    this.item.append(this.#time, words);
    this.#waiting = true;
  }

  set #waiting(waits) {
    this.item.classList.toggle("waiting", waits);
    this.item.ariaBusy = String(waits);
  }

  setQuestion(text) {
    this.#question.textContent = text;
    this.#question.hidden = false;
  }

  add(time, words) {
    this.#setTime(time);
    this.#text.textContent += words;
  }

  finish(time, text) {
    this.#waiting = false;
    this.text = this.#text.textContent = text;
    if (time !== null) this.#setTime(time);
  }

  recall(recalled) {
    const list = element("ul", "recalled");
    list.ariaLabel = "Recalled from";
    for (const { time, text } of recalled) {
      const item = element("li");
      item.append(timeOf(time), ` ${text}`);
      list.append(item);
    }
    this.#text.after(list);
  }

  illustrate(picture) {
    this.url = this.#image.src = URL.createObjectURL(picture);
    this.button.ariaLabel = `Show ${this.time} large: ${this.text}`;
    this.item.append(this.button);
  }

  #setTime(seconds) {
    const time = timeOf(seconds);
    this.#time.replaceWith(time);
    this.#time = time;
    this.time = time.textContent;
  }

  remove() {
    this.item.remove();
    if (this.url) URL.revokeObjectURL(this.url);
  }
}

class Large {
  #dialog = document.getElementById("large");
  #picture = document.getElementById("large-picture");
  #time = document.getElementById("large-time");
  #text = document.getElementById("large-text");
  #earlier = document.getElementById("large-earlier");
  #later = document.getElementById("large-later");
  #shown = null;
  #moments;

  constructor(moments) {
    this.#moments = moments;
    this.#earlier.onclick = () => this.#step(-1);
    this.#later.onclick = () => this.#step(1);
    this.#dialog.onkeydown = ({ key }) => {
      if (key === "ArrowLeft") this.#step(-1);
      if (key === "ArrowRight") this.#step(1);
    };
  }

  open(moment) {
    if (!moment?.url) return;
    this.#shown = moment;
    this.#picture.src = moment.url;
    this.#picture.alt = `The picture at ${moment.time}`;
    this.#time.textContent = moment.time;
    this.#text.textContent = moment.text;
    const moments = this.#moments();
    this.#earlier.disabled = moment === moments[0];
    this.#later.disabled = moment === moments.at(-1);
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  #step(by) {
    const moments = this.#moments();
    this.open(moments[moments.indexOf(this.#shown) + by]);
  }
}

// 0:07, 12:34, 1:02:03
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (number) => String(number).padStart(2, "0");
  const minutes = Math.floor(whole / 60);
  const front = minutes < 60 ? `${minutes}` : `${Math.floor(minutes / 60)}:${two(minutes % 60)}`;
  return `${front}:${two(whole % 60)}`;
}

function timeOf(seconds) {
  const time = element("time");
  time.textContent = clock(seconds);
  time.dateTime = `PT${seconds.toFixed(1)}S`;
  return time;
}

function element(name, className = "") {
  const created = document.createElement(name);
  created.className = className;
  return created;
}
