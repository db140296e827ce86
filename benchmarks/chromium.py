"""A real Chromium that a program drives, and a server for it in this process."""

import contextlib
import shutil
import socket
import threading
import time

import uvicorn

# Seconds that anything on the page may take; most of them compilation.
PATIENCE = 300.0
_SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
)


class NoChromium(Exception):
    """Why no browser can be driven."""


@contextlib.contextmanager
def serving(app):
    """Serves an application on a free port; yields its address."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def chromium(downloads):
    """Yields a Chromium that saves downloads in a folder.

    Raises:
      NoChromium: if it, its driver or the package that drives it is not installed.
    """
    try:
        from selenium import webdriver
    except ModuleNotFoundError as error:
        raise NoChromium("the package selenium is not installed") from error
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if not all(programs):
        raise NoChromium("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for switch in _SWITCHES:
        options.add_argument(switch)
    options.add_experimental_option(
        "prefs", {"download.default_directory": str(downloads)}
    )
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs[1])
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


class Screen:
    """What a person sees of the page, and does there."""

    def __init__(self, driver, address, width=1280):
        """Opens the page and waits for the first question."""
        self.driver = driver
        self.resize(width)
        driver.get(address)
        self.wait(lambda: self.js("return document.documentElement.dataset.ready"))

    def resize(self, width, height=900):
        """Gives the window a size; a narrow one is that of a telephone."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        size["mobile"] = width < 600
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def js(self, script, *arguments):
        """Runs JavaScript."""
        return self.driver.execute_script(script, *arguments)

    def all(self, css):
        """All elements of a CSS selector."""
        return self.driver.find_elements("css selector", css)

    def one(self, css):
        """The only element of a CSS selector."""
        (found,) = self.all(css)
        return found

    def wait(self, happened):
        """Waits until a function returns something that is true; returns that."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if found := happened():
                return found
            time.sleep(0.02)
        raise TimeoutError("nothing happened on the page")

    @property
    def num_answers(self):
        """How many answers are kept."""
        return int(self.js("return document.documentElement.dataset.answers"))

    @property
    def options(self):
        """Positions of the two options."""
        return [int(card.get_attribute("data-option")) for card in self.all(".option")]

    @property
    def texts(self):
        """The two options as they are read."""
        return self.js(
            "return [...document.querySelectorAll('.content')].map(x => x.textContent)"
        )

    @property
    def regions(self):
        """The paths of the contours, when they have come to rest."""
        read = "return [...document.querySelectorAll('.region')].map(x => x.outerHTML)"
        while True:
            before = self.js(read)
            time.sleep(0.6)
            if self.js(read) == before:
                return before

    def press(self, key, gives=None):
        """Presses a key; waits until there are `gives` more answers, if given."""
        from selenium.webdriver.common.keys import Keys

        count = self.num_answers
        self.one("body").send_keys(getattr(Keys, key) if len(key) > 1 else key)
        if gives is not None:
            self.wait(lambda: self.num_answers == count + gives)

    def click(self, element, gives=None):
        """Clicks an element, likewise."""
        count = self.num_answers
        # At once: the page itself scrolls smoothly, and would still move.
        self.js(
            "arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})",
            element,
        )
        element.click()
        if gives is not None:
            self.wait(lambda: self.num_answers == count + gives)

    def downloaded(self, folder, name):
        """Waits for a file that is saved; returns its path."""
        path = folder / name
        self.wait(lambda: path.exists() and path.stat().st_size)
        return path

    @property
    def complaints(self):
        """What the browser wrote into its log."""
        return [each["message"] for each in self.driver.get_log("browser")]
