"""Bar charts as SVG, written by hand: a bar is the median, the line over it goes from the least to the most."""
from html import escape
from statistics import median

COLOURS = {"sluice": "#1f6f8b", "haproxy": "#8a8a8a", "epoll": "#b5b5b5", "oracle": "#444444", "sglang-router": "#d98e04",
           "smg": "#b3541e", "vllm-router": "#7d5ba6"}
WIDTH, LABELS, BAR, GAP = 860, 250, 15, 26


def bars(path, title, panels):
    """`panels`: (heading, [(name, values)]); each panel has a scale of its own."""
    rows, y = [], 48
    for heading, series in panels:
        series = [(name, numbers) for name, numbers in series if numbers]
        if not series:
            continue
        if heading:
            rows.append(f'<text x="12" y="{y}" font-weight="bold">{escape(heading)}</text>')
            y += 10
        scale = (WIDTH - LABELS - 90) / max(1e-9, max(max(numbers) for _, numbers in series))
        for name, numbers in series:
            low, mid, high = (max(0.0, v) * scale for v in (min(numbers), median(numbers), max(numbers)))
            colour = next((c for key, c in COLOURS.items() if name.startswith(key)), "#8a8a8a")
            opacity = 0.6 if name == "sluice cache_aware" else 1
            middle = y + BAR / 2
            rows += [f'<text x="{LABELS - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>',
                     f'<rect x="{LABELS}" y="{y}" width="{mid:.1f}" height="{BAR}" fill="{colour}" opacity="{opacity}"/>',
                     f'<path d="M{LABELS + low:.1f} {middle}H{LABELS + high:.1f}" stroke="#000" stroke-width="1.5"/>',
                     f'<text x="{LABELS + high + 6:.1f}" y="{y + 12}">{short(median(numbers))}</text>']
            y += BAR + 4
        y += GAP
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y - 8}" '
                    f'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
                    f'<text x="12" y="22" font-size="15">{escape(title)}</text>\n' + "\n".join(rows) + "\n</svg>\n")


def short(number):
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"
