// The user's own pictures: dropped, pasted or picked, made small enough to send often. Knows no query.

import { oneLine } from "./elements.js";

const LARGE = 300_000; // bytes; smaller ones are sent as they are
const SIDE = 1_024; // pixels; models look at 224 to 512

/** `{blob, name, address}`; what the browser cannot decode is left to the server to judge. */
export async function toUpload(file) {
  const blob = file.size > LARGE ? await smaller(file) : file;
  return { blob, name: oneLine(file.name || "picture", 40), address: URL.createObjectURL(blob) };
}

async function smaller(file) {
  try {
    const picture = await createImageBitmap(file);
    const scale = Math.min(1, SIDE / Math.max(picture.width, picture.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(scale * picture.width));
    canvas.height = Math.max(1, Math.round(scale * picture.height));
    const drawing = canvas.getContext("2d");
    drawing.fillStyle = "#fff"; // as the server sees through transparent parts
    drawing.fillRect(0, 0, canvas.width, canvas.height);
    drawing.imageSmoothingQuality = "high";
    drawing.drawImage(picture, 0, 0, canvas.width, canvas.height);
    picture.close();
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    return blob && blob.size < file.size ? blob : file;
  } catch {
    return file;
  }
}

/** Calls `use(file)` for every picture that is dropped on the page or pasted into it; `overlay` shows where. */
export function listen(overlay, use) {
  const pictures = (transfer) => [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/"));
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const leave = () => { depth = 0; overlay.hidden = true; };
  addEventListener("dragenter", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    depth += 1;
    overlay.hidden = false;
  });
  addEventListener("dragleave", (event) => { if (carries(event) && --depth <= 0) leave(); });
  addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    leave();
    const [file] = pictures(event.dataTransfer);
    if (file) use(file);
  });
  addEventListener("paste", (event) => {
    const [file] = pictures(event.clipboardData);
    if (!file) return;
    event.preventDefault();
    use(file);
  });
}
