"""Writes the table in guarantees.md from the one that construction checks against: `make docs`."""

from pathlib import Path

from hpcvol.guarantees import table

PAGE = Path(__file__).with_name("guarantees.md")
BEGIN, END = "<!-- Written from hpcvol/guarantees.py by `make docs`. -->\n", "<!-- End of what is written. -->\n"


def page() -> str:
    """Return the whole page, with the table as it is in the code."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
