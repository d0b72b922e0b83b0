"""What a data set of samples says about a fleet, before any model: states, zones, which signal tells what, where TTFT turns.

signals      samples as named columns of numbers                                                             pure
states       K-means over the states of endpoints: how many kinds there are, and their middle                pure
relations    each signal against TTFT, zone by zone; what a boosted model finds important                    pure
knee         where the median TTFT turns from 0.5 to 2 seconds                                               pure
findings     all of the above, of one data set                                                               pure
figures      drawings of them
report       the text beside the drawings, as Markdown and as one HTML file
page         any Markdown report as a page, docs/report.md among them
"""
