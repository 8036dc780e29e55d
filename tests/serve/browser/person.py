"""What a person does on the page, and what they see; and the pictures that they have."""

import io

import numpy as np
from PIL import Image

PICTURES = 150  # in the library `photographs`: two full pages and a half
TOKEN = "a-token-of-the-browser-tests"
HOSTILE = {
    "<img src=x onerror=window.hacked=1>.png": '<img src=x onerror="window.hacked=1">',
    "two\nlines.png": "<script>window.hacked=1</script>",
    "quotes\"'`.png": "a \"quoted\" 'caption' & more",
    "חוף הים.png": "ילדים משחקים על החוף",
    "reversed\u202egnp.png": "the name turns around",
    "日本語の写真.png": "山の上の雪",
}
PHONE = {"width": 360, "height": 740, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}


def photograph(number, size):
    """A picture that looks like no other: a gradient with a disc."""
    width, height = size
    random = np.random.default_rng(number)
    from_RGB, to_RGB, disc_RGB = random.integers(0, 256, (3, 3))
    y_HW, x_HW = np.mgrid[0:height, 0:width]
    part_HW1 = ((x_HW + y_HW) / (width + height))[..., None]
    pixels_HW3 = from_RGB * (1 - part_HW1) + to_RGB * part_HW1
    inside_HW = (x_HW - width * random.random()) ** 2 + (y_HW - height * random.random()) ** 2 < (height / 4) ** 2
    pixels_HW3[inside_HW] = disc_RGB
    return Image.fromarray(pixels_HW3.astype(np.uint8))


def picture_bytes(number, size=(96, 64), kind="PNG"):
    """A file that is in no library."""
    stream = io.BytesIO()
    photograph(number, size).save(stream, kind)
    return stream.getvalue()


def names(page):
    """The pictures that are in sight or near it, in their order: the first words of what their links are called."""
    labels = page.eval_on_selector_all("#grid .shot", "links => links.map(link => link.getAttribute('aria-label'))")
    return [label.split(",")[0] for label in labels]


def wait_for_other(page, before):
    """Waits until other pictures are shown than `before`; gives them."""
    page.wait_for_function(
        """before => {
          const links = [...document.querySelectorAll('#grid .shot')];
          const now = links.map(link => link.getAttribute('aria-label').split(',')[0]);
          return now.length && JSON.stringify(now) !== JSON.stringify(before);
        }""",
        arg=before,
    )
    return names(page)


def type_words(page, words):
    """Types into the search box and waits for the answer."""
    before = names(page)
    page.fill("#q", words)
    return wait_for_other(page, before)


def drop(page, data, name="dropped.png", kind="image/png"):
    """Drops a file on the page, as a browser tells of it."""
    page.evaluate(
        """([bytes, name, kind]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name, {type: kind}));
          for (const event of ["dragenter", "dragover", "drop"]) {
            const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
            document.body.dispatchEvent(new DragEvent(event, options));
          }
        }""",
        [list(data), name, kind],
    )


def focused(page):
    """What has the focus: its id, or what it is called."""
    return page.evaluate(
        "() => { const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.tagName; }"
    )


def paste(page, data, kind="image/png"):
    """Pastes a picture, as a browser tells of it."""
    page.evaluate(
        """([bytes, kind]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "image.png", {type: kind}));
          const event = new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true});
          document.activeElement.dispatchEvent(event);
        }""",
        [list(data), kind],
    )


def open_first(page, place=0):
    """Opens a picture of the grid and waits for all that is told of it; its name."""
    name = names(page)[place]
    page.locator("#grid .shot").nth(place).click()
    page.wait_for_selector("#viewer[open]")
    wait_for_name(page, name)
    return name


def wait_for_name(page, name):
    page.wait_for_function(
        """name => document.querySelector('#viewer-name').textContent === name
          && document.querySelector('#viewer-facts dl')
          && document.querySelector('#stage').classList.contains('whole')""",
        arg=name,
    )


def in_sight(page, selector):
    """Whether the first element of that kind lies within the window."""
    return page.eval_on_selector(
        selector,
        """e => {
          const box = e.getBoundingClientRect();
          return box.top >= 0 && box.left >= 0 && box.bottom <= innerHeight + 1 && box.right <= innerWidth + 1;
        }""",
    )
