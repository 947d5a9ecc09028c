"""Names, places, products and other values that occur in tasks."""

from __future__ import annotations

import random

from .task import Pool, Split

FIRST_NAMES = Pool(
    """Aaron Abena Ada Adele Agnes Ahmed Aiko Alba Alice Amara Amir Ana Anders Andrea Anika Anton Ariel Astrid Aylin
        Bao Beatrice Bela Benedikt Bianca Bo Boris Bruno Camila Carlos Carmen Cecilia Chen Chidi Claire Clara
        Conrad Dalia Damian Dana Daniel Daria David Delia Derya Diego Dmitri Dora Edith Edwin Eitan Elena Elias
        Elif Elsa Emeka Emil Emma Erik Esra Esther Eva Fatima Felix Fiona Flora Florian Frida Gabriel Gita Goran
        Greta Gustav Hana Hannah Haruto Hassan Hector Helena Henrik Hugo Ibrahim Ida Ilse Imani Ines Ingrid
        Irene Isaac Ivan Jakob Jamal Jana Jasmin Javier Jia Joana Joel Jonas Josef Julia Jun Kamal Karin Karl
        Kaya Keiko Kemal Kira Klara Kofi Kwame Lars Laila Laura Layla Lea Lena Leo Leila Liam Lin Linh Lior Luca
        Lucia Ludwig Luis Magnus Maja Malik Mara Marco Maria Marta Martin Mateo Maya Mei Mehmet Mila Miguel
        Milan Mina Mira Mohan Nadia Naomi Nils Nina Noah Nora Olga Oliver Omar Oscar Paola Paul Pavel Pedro
        Petra Pia Priya Rafael Rania Raj Renata Rita Robert Rosa Ruben Ruth Sami Samuel Sana Sandra Sara Selma
        Sergei Silvia Simon Sofia Sonja Stefan Sven Tamar Tariq Tess Theo Thomas Tilda Tomas Uma Ursula Valeria
        Vera Victor Viktor Vivian Walter Wanda Wei Xavier Yara Yasmin Yosef Yuki Yusuf Zahra Zara Zeynep Zoe
        Zofia""".split()
)

LAST_NAMES = Pool(
    """Abbott Adeyemi Agarwal Ahlberg Almeida Andersen Aoki Arslan Baker Banerjee Barros Bauer Becker Benitez Berg
        Bianchi Blanco Bloom Bogdan Brandt Brooks Bruun Cabrera Campbell Carter Castillo Celik Chang Chavez Cho
        Clarke Cohen Collins Conti Costa Cruz Dahl Danso Das Delgado Demir Diallo Diaz Dietrich Dubois Duarte
        Eastwood Eriksen Espinoza Farouk Ferrari Fischer Fletcher Flores Fontaine Forsberg Foster Franco Fraser
        Fujita Garcia Gallo Gibson Girard Gomez Gordon Grant Greco Gruber Gupta Haas Haddad Hagen Hansen Harper
        Hartmann Hassan Hayashi Hein Herrera Hoffman Holm Horvat Huang Hughes Hussain Ibarra Inoue Ivanov Jansen
        Jensen Johansson Jordan Jung Kapoor Kaplan Karlsson Kaur Keller Kelly Khan Kim Kimura Klein Kovac
        Kowalski Kumar Lambert Lang Larsen Laurent Lehmann Leone Levi Lindgren Lopez Lund Mahmoud Maier Mancini
        Marino Martell Mason Mazur Medina Mendes Mensah Meyer Mills Mitchell Molina Moreau Morgan Moretti Morris
        Muller Murphy Nakamura Navarro Nielsen Nkosi Nowak Nunez Obi Okafor Olsen Ortega Osman Owens Pacheco
        Palmer Park Patel Pereira Perez Petersen Petrov Pham Pires Popov Quinn Ramirez Rao Reyes Ricci Riley
        Rinaldi Rivera Roberts Rojas Romano Rossi Roth Russo Sahin Saito Salazar Santos Sato Schmidt Schneider
        Schulz Serrano Shah Sharma Silva Simic Singh Sokolov Soto Stein Stone Suzuki Svensson Tan Tanaka Taylor
        Thorne Toledo Torres Tran Tucker Turner Underwood Vargas Vasquez Vega Vidal Vogel Wagner Walker Walsh
        Wang Watson Weber Weiss Wilder Winter Wolf Wright Yamada Yang Yilmaz Young Zamora Zhang Ziegler Zimmer""".split()
)

CITIES = Pool(
    """Aarhus Accra Adelaide Almaty Amman Ankara Antwerp Athens Auckland Austin Baku Bangalore Barcelona Basel Beirut
        Belgrade Bergen Berlin Bilbao Bogota Bologna Bordeaux Boston Bremen Brighton Brisbane Brno Bruges
        Brussels Budapest Cairo Calgary Cardiff Casablanca Chicago Cologne Cordoba Cork Cusco Dakar Dallas Delft
        Denver Dresden Dublin Dundee Durban Edinburgh Essen Exeter Florence Fukuoka Galway Gdansk Geneva Genoa
        Ghent Glasgow Gothenburg Granada Graz Hamburg Hanoi Havana Helsinki Houston Innsbruck Istanbul Izmir
        Jakarta Kampala Kiel Krakow Kyoto Lagos Lausanne Leeds Leipzig Lima Limerick Linz Lisbon Liverpool
        Ljubljana London Lyon Madrid Malaga Malmo Manila Marseille Medellin Melbourne Memphis Milan Montreal
        Munich Nagoya Nairobi Nantes Naples Nice Odense Oporto Osaka Oslo Ottawa Oxford Palermo Paris Perth Pisa
        Porto Prague Quito Rabat Reykjavik Riga Rome Rotterdam Salzburg Santiago Sapporo Seattle Seoul Seville
        Sofia Split Stockholm Sydney Tallinn Tampere Tbilisi Tokyo Toledo Toronto Trieste Tunis Turin Uppsala
        Utrecht Valencia Vancouver Venice Verona Vienna Vilnius Warsaw Zagreb Zurich""".split()
)

_COMPANY_NAMES = Pool(
    """Acorn Alder Amber Anchor Apex Arbor Aster Atlas Aurora Basalt Beacon Birch Bluebird Boreal Bright Canyon Cedar
        Cobalt Comet Copper Coral Crescent Crown Delta Dune Eagle Echo Elm Ember Falcon Fern Fjord Flint Forge
        Garnet Glacier Granite Harbor Hazel Heron Horizon Indigo Iris Ivory Jade Juniper Keystone Lantern Larch
        Lark Linden Lotus Lunar Maple Marble Meadow Meridian Mistral Nimbus Northern Oak Onyx Orchid Osprey
        Otter Pebble Pine Pioneer Polar Prairie Quartz Raven Ridge River Robin Saffron Sage Sierra Silver Solar
        Sparrow Spruce Summit Swift Tidal Timber Topaz Tulip Valley Velvet Vertex Violet Walnut Willow Zenith
        Zephyr""".split()
)
_COMPANY_KINDS = Pool(
    ["Analytics", "Books", "Energy", "Foods", "Foundry", "Furniture", "Garden", "Instruments", "Labs", "Logistics",
     "Media", "Motors", "Optics", "Paper", "Robotics", "Software", "Supply", "Textiles", "Tools", "Trading", "Works"],
    held_out=0.0,
)  # fmt: skip

PRODUCTS = Pool(
    """anvil apron backpack basket battery beaker bench binder blanket blender bottle bowl bracket broom brush bucket
        bulb cabinet cable candle canvas carpet cart chair chisel clamp clipboard clock comb compass cooler cork
        cup curtain cushion desk dial drill drum easel eraser fan faucet file filter flask folder fork frame
        funnel gasket glove grinder guitar hammer handle hanger hatch heater helmet hinge hook hose jacket jar
        kettle keyboard knife ladder lamp lantern laptop latch ledger lens level lock locker magnet mallet
        marker mask mat microphone mirror monitor mop motor mug nail napkin needle notebook nozzle oven paddle
        padlock pallet pan pedal pen pencil phone pillow pipe plate pliers plug pot printer projector pulley
        pump puzzle rack racket radio rake ratchet razor ribbon ring rope router ruler saddle saw scale scanner
        scarf scissors screen screw sensor shelf shovel sink sketchbook socket sofa spade speaker sponge spool
        spoon spring stapler stool stove strap suitcase switch table tablet tape teapot tent thermos tile timer
        toaster torch towel tray tripod trolley tube umbrella valve vase vest vise wagon wallet washer wheel
        whistle wrench zipper""".split()
)

TOPICS = Pool(
    """astronomy beekeeping botany calligraphy carpentry ceramics chess climate coding cycling dance design drawing
        economics ecology fencing fermentation film finance gardening geology history jazz juggling knitting
        languages law logic magic mapping marketing mathematics medicine music mythology navigation nutrition
        opera painting philosophy photography physics poetry pottery printing psychology robotics rowing sailing
        sculpture singing sleep statistics storytelling surfing swimming tea theatre translation typography
        weaving wine woodwork writing yoga""".split()
)

_MONTHS = (
    "January February March April May June July August September October November December".split()
)


def name(rng: random.Random, split: Split) -> str:
    """Return a first and a last name."""
    return f"{FIRST_NAMES.pick(rng, split)} {LAST_NAMES.pick(rng, split)}"


def company(rng: random.Random, split: Split) -> str:
    """Return the name of a company."""
    return f"{_COMPANY_NAMES.pick(rng, split)} {_COMPANY_KINDS.pick(rng, split)}"


def date(rng: random.Random) -> str:
    """Return a date, written as 2025-03-14 or 14 March 2025."""
    year, month, day = rng.randint(2015, 2029), rng.randint(1, 12), rng.randint(1, 28)
    return (
        f"{year}-{month:02}-{day:02}"
        if rng.random() < 0.5
        else f"{day} {_MONTHS[month - 1]} {year}"
    )


def phrase(rng: random.Random, split: Split, *parts: Pool[str]) -> str:
    """Return a wording that joins one random value of each pool."""
    return " ".join(filter(None, (part.pick(rng, split) for part in parts)))
