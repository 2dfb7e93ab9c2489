"""A small workshop to try things on."""

from atelier.records import Batch, Board, Bow, Instrument, Order, String, Tool


def _all(kind: type, *rows: tuple) -> list:
    return [dict(zip(kind.__annotations__, row, strict=True)) for row in rows]


BOARDS: list[Board] = _all(
    Board,
    ("spruce", 820, 540, 48, 7.5, "A", 2009, 210.0),
    ("maple", 840, 250, 52, 9.0, "B", 2012, 165.0),
    ("spruce", 410, 270, 30, 15.5, "B", 2021, 38.0),
    ("willow", 1200, 300, 25, 11.2, "C", 2018, 24.5),
    ("maple", 420, 280, 45, 6.8, "A", 2004, 320.0),
    ("poplar", 1650, 620, 36, 18.0, "B", 2023, 71.0),
    ("ebony", 390, 90, 28, 7.9, "A", 2011, 88.0),
    ("spruce", 1150, 790, 40, 12.4, "C", 2016, 130.0),
    ("rosewood", 300, 110, 31, 8.4, "B", 2014, 56.5),
    ("maple", 1310, 330, 38, 16.1, "C", 2022, 97.0),
)
BATCHES: list[Batch] = _all(
    Batch,
    ("Old Cremona", "oil", 240, 260, 180, 7, "2023-02-11"),
    ("Clear seal", "spirit", 60, 0, 300, 0, "2024-09-02"),
    ("Ruby", "oil", 120, 90, 60, 9, "2024-03-20"),
    ("Honey", "oil", 310, 400, 150, 3, "2022-11-05"),
    ("French polish", "spirit", 150, 0, 450, 4, "2024-01-15"),
    ("Burnt sugar", "oil", 80, 120, 140, 6, "2024-08-08"),
    ("Copal 3", "oil", 420, 300, 90, 5, "2023-07-29"),
    ("Dragon", "spirit", 95, 0, 210, 10, "2023-12-01"),
)
STRINGS: list[String] = _all(
    String,
    ("Lark", "E5", "steel", 0.26, 328, 40, 6.5),
    ("Lark", "A4", "synthetic", 0.68, 328, 22, 14.9),
    ("Lark", "D4", "synthetic", 0.82, 328, 9, 17.2),
    ("Corda", "G3", "gut", 1.62, 328, 4, 29.0),
    ("Corda", "A4", "gut", 0.76, 328, 0, 18.5),
    ("Ferro", "C3", "steel", 0.84, 370, 15, 31.5),
    ("Ferro", "A3", "steel", 0.74, 690, 11, 36.0),
    ("Corda", "E5", "gut", 0.62, 328, 7, 9.8),
    ("Ferro", "D3", "steel", 1.02, 690, 3, 41.0),
)
INSTRUMENTS: list[Instrument] = _all(
    Instrument,
    ("violin", "Hollmann", 1911, 356, 195, 441, 4, 14500.0),
    ("violin", "Serra", 2019, 353, 193, 472, 5, 6200.0),
    ("viola", "Hollmann", 1924, 412, 220, 634, 2, 8800.0),
    ("cello", "Quint", 1988, 752, 402, 2980, 3, 12900.0),
    ("violin", "Quint", 1890, 335, 181, 398, 1, 950.0),
    ("cello", "Serra", 2021, 690, 380, 2740, 5, 7400.0),
    ("viola", "Brandt", 2003, 404, 221, 601, 4, 5100.0),
    ("violin", "Brandt", 1975, 358, 197, 465, 2, 2300.0),
    ("cello", "Hollmann", 1902, 757, 408, 2850, 3, 31000.0),
)
BOWS: list[Bow] = _all(
    Bow,
    ("pernambuco", "Voss", 61.5, 192, 730, 5.1, "2024-02-03", 3400.0),
    ("carbon", "Adler", 59.0, 185, 730, 4.8, "2023-10-19", 420.0),
    ("ipe", "Voss", 63.2, 199, 732, 5.3, "2024-06-27", 890.0),
    ("snakewood", "Lenz", 56.4, 171, 690, 4.2, "2022-12-30", 1750.0),
    ("pernambuco", "Lenz", 71.8, 181, 742, 6.0, "2024-08-14", 5200.0),
    ("carbon", "Voss", 80.3, 174, 715, 6.9, "2024-04-01", 610.0),
    ("ipe", "Adler", 58.1, 188, 728, 4.9, "2023-05-22", 330.0),
    ("pernambuco", "Adler", 60.2, 187, 729, 5.0, "2024-01-09", 2150.0),
)
ORDERS: list[Order] = _all(
    Order,
    (101, "Ostrow", "repair", "2024-08-20", "2024-09-10", 14.0, 120.0, 300.0, False),
    (102, "Lindqvist", "setup", "2024-09-28", "2024-10-02", 2.5, 61.0, 215.39, True),
    (103, "Abara", "new", "2024-01-15", "2024-12-20", 210.0, 940.0, 5000.0, False),
    (104, "Ostrow", "setup", "2024-10-01", "2024-10-06", 1.5, 85.0, 0.0, False),
    (105, "Teixeira", "repair", "2024-07-02", "2024-08-01", 22.0, 310.0, 1992.06, True),
    (106, "Abara", "repair", "2024-09-09", "2024-09-14", 5.5, 18.0, 100.0, True),
    (107, "Moreau", "new", "2024-05-06", "2025-02-28", 180.0, 1100.0, 2500.0, False),
    (108, "Lindqvist", "repair", "2024-10-03", "2024-11-15", 9.0, 640.0, 400.0, False),
    (109, "Moreau", "setup", "2024-06-11", "2024-06-30", 3.0, 150.0, 349.86, True),
)
TOOLS: list[Tool] = _all(
    Tool,
    ("Long plane", "plane", 25, 50, 88, "A1", "2024-08-30", 145.0),
    ("Toothed plane", "plane", 38, 32, 131, "A2", "2024-03-12", 118.0),
    ("Thumb plane", "plane", 27, 12, 64, "A1", "2024-09-21", 79.0),
    ("Scroll gouge", "gouge", 22, 8, 60, "B1", "2024-07-05", 41.5),
    ("Arching gouge", "gouge", 31, 30, 19, "B1", "2024-09-25", 66.0),
    ("Bridge knife", "knife", 18, 9, 41, "B2", "2024-02-17", 28.0),
    ("Purfling knife", "knife", 20, 3, 12, "B2", "2024-08-11", 35.5),
    ("Flat scraper", "scraper", 45, 60, 9, "C1", "2024-09-29", 14.0),
    ("Goose scraper", "scraper", 45, 75, 17, "C1", "2024-01-30", 16.5),
)
