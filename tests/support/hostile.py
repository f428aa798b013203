"""Texts that are markup, formulas or commands to a reader that does not take them as text."""

import itertools

RUN = "window.pwned=1"

MARKUP = (
    f"<script>{RUN}</script>",
    f"</script><script>{RUN}</script>",
    f"</title><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"<img src=x onerror={RUN}>",
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<a href='javascript:{RUN}'>x</a>",
    f"<details open ontoggle={RUN}>",
    f"<body onload={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<b onmouseover={RUN}>b</b>",
    f'" onfocus="{RUN}" autofocus="',
    f"' onfocus='{RUN}' autofocus='",
    f"`-{RUN}-`",
    f"';{RUN};'",
    f'";{RUN};"',
    "<!-- a comment",
    "--> no comment",
    "<!--<script>",
    "]]>",
    "<![CDATA[x]]>",
    "&lt;b&gt; &amp; &#60;script&#62;",
    "<plaintext>",
    "<textarea>",
    "<style>*{display:none}</style>",
    "<meta http-equiv=refresh content=0>",
    "<base href=//x>",
    "<link rel=stylesheet href=//x>",
)
TEMPLATES = (
    "{{ 7 * 7 }}",
    "{% raw %}",
    "{# x #}",
    "${7*7}",
    "<%= 7 %>",
    "#{7*7}",
    "{{constructor}}",
)
OTHERS = (
    *("=1+1", "+1", "-1", "@SUM(1)", "=cmd|' /C calc'!A0", "[bold]x[/bold]", "[/]", "\\input{x}"),
    *("$x$", "%d %s %n", "\u202ereversed", "\u200b", "\ufeff", "a\u0300" * 20, "\u2028", "%3Cb%3E"),
    *("../../x", "file:///etc/passwd", "x" * 300, "NaN", "null", "__proto__", "constructor"),
)


def texts():
    """More than 120 of them."""
    single = [*MARKUP, *TEMPLATES, *OTHERS]
    pairs = [f"{a}{b}" for a, b in itertools.product(MARKUP[:20], ("<", "&", '"'))]
    return [*single, *pairs]
