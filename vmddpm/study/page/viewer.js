// The image: grey levels through a window, zoom and position. Nothing here knows of answers.

const MOST_ZOOM = 16;

class Viewer {
  constructor(canvas, sliders) {
    this.canvas = canvas;
    this.sliders = sliders;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.pointers = new Map();
    const frame = canvas.parentElement;
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoomBy(2 ** (-event.deltaY / 300), event);
    }, { passive: false });
    frame.addEventListener("contextmenu", (event) => event.preventDefault());
    frame.addEventListener("dblclick", () => this.reset());
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
    });
    frame.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel"]) {
      frame.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    }
    for (const slider of Object.values(sliders)) slider.addEventListener("input", () => this.draw());
    this.place(1, 0, 0);
  }

  // bitmap: ImageBitmap, or null while there is none. Zoom starts anew with each image, brightness and contrast are kept.
  show(bitmap) {
    this.source = null;
    this.canvas.hidden = !bitmap;
    this.place(1, 0, 0);
    if (!bitmap) return;
    [this.canvas.width, this.canvas.height] = [bitmap.width, bitmap.height];
    this.context.drawImage(bitmap, 0, 0);
    this.source = this.context.getImageData(0, 0, bitmap.width, bitmap.height);
    this.draw();
  }

  // Brightness is the window's level, contrast its width.
  draw() {
    if (!this.source) return;
    const width = 256 * 2 ** (-Number(this.sliders.contrast.value) / 40);
    const middle = 127.5 - 1.275 * Number(this.sliders.brightness.value);
    const shown = new Uint8ClampedArray(256).map((_, grey) => 127.5 + ((grey - middle) * 256) / width);
    const out = new ImageData(new Uint8ClampedArray(this.source.data), this.source.width);
    for (let i = 0; i < out.data.length; i += 4) {
      for (let c = 0; c < 3; c++) out.data[i + c] = shown[out.data[i + c]];
    }
    this.context.putImageData(out, 0, 0);
  }

  adjust(name, by) {
    this.sliders[name].value = Number(this.sliders[name].value) + by;
    this.draw();
  }

  reset() {
    for (const slider of Object.values(this.sliders)) slider.value = 0;
    this.place(1, 0, 0);
    this.draw();
  }

  place(zoom, x, y) {
    const reach = { x: (this.canvas.clientWidth * (zoom - 1)) / 2, y: (this.canvas.clientHeight * (zoom - 1)) / 2 };
    this.zoom = zoom;
    this.x = Math.min(Math.max(x, -reach.x), reach.x);
    this.y = Math.min(Math.max(y, -reach.y), reach.y);
    this.canvas.style.transform = `translate(${this.x}px, ${this.y}px) scale(${zoom})`;
  }

  // at: where the image stays as it is, in the window's coordinates; the middle of the frame if not given.
  zoomBy(factor, at) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), MOST_ZOOM);
    const frame = this.canvas.parentElement.getBoundingClientRect();
    const x = at ? at.clientX - frame.left - frame.width / 2 : 0;
    const y = at ? at.clientY - frame.top - frame.height / 2 : 0;
    const grown = zoom / this.zoom;
    this.place(zoom, x - (x - this.x) * grown, y - (y - this.y) * grown);
  }

  moveBy(x, y) {
    this.place(this.zoom, this.x + x, this.y + y);
  }

  move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    this.pointers.set(event.pointerId, event);
    const [x, y] = [event.clientX - before.clientX, event.clientY - before.clientY];
    const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    if (other) {
      const distance = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
      const middle = { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 };
      this.zoomBy(distance(event) / Math.max(distance(before), 1), middle);
      this.moveBy(x / 2, y / 2);
    } else if (event.buttons & 2) {
      this.adjust("contrast", -x / 3); // to the right is a wider window, as on a workstation
      this.adjust("brightness", -y / 3);
    } else {
      this.moveBy(x, y);
    }
  }
}
