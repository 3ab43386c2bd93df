"""Subjects of the embedded demo: which emoji the tiny base model knows.

Labels are those of emojibase-data. The category becomes a tag of the caption. The validation
subjects are taught to the base like all others, but never shown to the demo LoRA.
"""

CONCEPTS: dict[str, str] = {
    "face": "grinning face; winking face; smiling face with heart-eyes; "
    "smiling face with sunglasses; thinking face; sleeping face; crying face; angry face; "
    "nerd face; face with medical mask; smiling face with halo; clown face; robot; alien; ghost; "
    "skull; jack-o-lantern; star-struck; cowboy hat face; pile of poo; alien monster; ogre; "
    "goblin; hot face; cold face; nauseated face; smiling face with horns; exploding head",
    "animal": "monkey face; dog face; fox; cat face; lion; tiger face; horse face; zebra; deer; "
    "cow face; pig face; giraffe; elephant; mouse face; rabbit face; bat; bear; koala; panda; "
    "frog; turtle; snake; dragon face; spouting whale; fish; tropical fish; shark; octopus; crab; "
    "snail; butterfly; honeybee; lady beetle; spider; teddy bear; gorilla; poodle; wolf; raccoon; "
    "unicorn; polar bear; ram; goat; camel; rhinoceros; hippopotamus; hedgehog; skunk; kangaroo; "
    "leopard; crocodile; lizard; sauropod; T-Rex; dolphin; blowfish; spiral shell; lobster; "
    "scorpion; black cat",
    "bird": "rooster; baby chick; penguin; duck; owl; flamingo; parrot; dove; eagle; swan; "
    "peacock; hatching chick",
    "plant": "rose; sunflower; tulip; cherry blossom; evergreen tree; palm tree; cactus; "
    "four leaf clover; maple leaf; mushroom; bouquet; hibiscus; deciduous tree; potted plant; "
    "fallen leaf; lotus",
    "fruit": "grapes; watermelon; tangerine; lemon; banana; pineapple; red apple; pear; cherries; "
    "strawberry; tomato; avocado; mango; green apple; peach; kiwi fruit; coconut; blueberries",
    "vegetable": "eggplant; carrot; ear of corn; hot pepper; broccoli; potato; bell pepper; "
    "cucumber",
    "food": "bread; baguette bread; pretzel; cheese wedge; hamburger; french fries; pizza; "
    "hot dog; taco; cooking; popcorn; sushi; soft ice cream; doughnut; birthday cake; cupcake; "
    "lollipop; croissant; bagel; pancakes; waffle; bacon; meat on bone; sandwich; rice ball; "
    "cookie; candy; spaghetti",
    "drink": "glass of milk; hot beverage; teapot; wine glass; beer mug; cup with straw; "
    "cocktail glass; tropical drink; bubble tea",
    "vehicle": "locomotive; bus; police car; taxi; automobile; tractor; motorcycle; bicycle; "
    "sailboat; ship; airplane; helicopter; rocket; flying saucer; fire engine; ambulance; "
    "racing car; delivery truck; motor scooter; skateboard; parachute; satellite; "
    "high-speed train; tram",
    "building": "house; castle; classical building; tent; Tokyo tower; ferris wheel; volcano; "
    "church; mosque; Japanese castle; fountain; circus tent; desert island",
    "sky": "sun; crescent moon; star; cloud; rainbow; snowflake; high voltage; ringed planet; "
    "fire; droplet; umbrella; snowman; full moon; tornado; cloud with lightning; sun with face",
    "sport": "soccer ball; basketball; american football; pool 8 ball; bullseye; trophy; "
    "baseball; tennis; volleyball; boxing glove; ice skate; kite",
    "music": "trumpet; guitar; violin; microphone; headphone; bell; saxophone; drum; "
    "musical keyboard; radio",
    "clothing": "sunglasses; t-shirt; jeans; dress; backpack; running shoe; high-heeled shoe; "
    "crown; top hat; ring; necktie; scarf; handbag; graduation cap; billed cap; kimono",
    "object": "balloon; wrapped gift; game die; video game; gem stone; mobile phone; battery; "
    "laptop; camera; magnifying glass tilted left; candle; light bulb; red paper lantern; "
    "closed book; money bag; envelope; package; pencil; locked; key; hammer; bomb; shield; gear; "
    "pill; door; chair; hourglass done; vertical traffic light; anchor; scissors; telephone; "
    "floppy disk; television; books; paintbrush; artist palette; pushpin; axe; wrench; "
    "screwdriver; magnet; ladder; microscope; syringe; toilet; bathtub; broom; bucket; "
    "fire extinguisher; compass; luggage; crystal ball; puzzle piece",
    "clock": "alarm clock; mantelpiece clock; stopwatch; timer clock; watch",
    "heart": "red heart; blue heart; green heart; yellow heart; broken heart; purple heart; "
    "orange heart; black heart",
    "sign": "stop sign; warning; no entry; radioactive; yin yang; recycling symbol",
}

# A family the base never sees, for the demo of a subject LoRA: one wall clock at twelve hours.
SUBJECT_FAMILY = (
    "one o’clock; two o’clock; three o’clock; four o’clock; five o’clock; six o’clock; "
    "seven o’clock; eight o’clock; nine o’clock; ten o’clock; eleven o’clock; twelve o’clock"
)

# Plainer names for captions than emojibase-data's; "cat face" becomes "cat" by rule.
PLAIN_NAMES = {
    "hourglass done": "hourglass",
    "magnifying glass tilted left": "magnifying glass",
    "ear of corn": "corn",
    "pool 8 ball": "billiard ball",
    "game die": "dice",
    "high voltage": "lightning",
    "lady beetle": "ladybug",
    "spouting whale": "whale",
    "locked": "padlock",
    "package": "parcel",
    "closed book": "book",
    "hot beverage": "cup of coffee",
    "gem stone": "gem",
    "running shoe": "sneaker",
    "high-heeled shoe": "high heel",
    "vertical traffic light": "traffic light",
    "red paper lantern": "paper lantern",
    "cooking": "fried egg",
    "soft ice cream": "ice cream",
    "T-Rex": "tyrannosaurus",
    "alien monster": "pixel monster",
    "pile of poo": "poo",
    "tennis": "tennis ball",
    "timer clock": "kitchen timer",
    "cold face": "frozen face",
    "meat on bone": "meat",
    "desert island": "island",
}

# Names whose last word would mislead as a tag.
HEADLESS = "hot dog; magnifying glass; no entry; yin yang; rice ball; exploding head"

# Images of the demo set: canvas -> subjects. Square ones are 64 x 64 pixels; tall and wide
# ones are cropped to the subject, on canvases of 80 x 48 and 48 x 80 (height x width).
TRAIN_SUBJECTS: dict[str, str] = {
    "square": "thinking face; smiling face with sunglasses; robot; ghost; dog face; fox; lion; "
    "tiger face; zebra; panda; elephant; frog; snake; tropical fish; octopus; honeybee; spider; "
    "parrot; red apple; lemon; strawberry; watermelon; carrot; hamburger; pizza; doughnut; "
    "hot beverage; airplane; castle; sun; soccer ball; violin; hammer; gem stone; red heart",
    "tall": "candle; wine glass; soft ice cream; Tokyo tower; penguin; tulip; balloon; chair; "
    "mobile phone; light bulb; deer; glass of milk",
    "wide": "automobile; bus; motorcycle; sunglasses; fish; running shoe; bat; crab; "
    "ringed planet; envelope",
}
VALIDATION_SUBJECTS: dict[str, str] = {
    "square": "cat face; bear; butterfly; mushroom; cherries; banana; cupcake; rocket; house; "
    "guitar; crown; umbrella; camera; turtle; cactus; rooster",
    "tall": "owl; pineapple; rose; hourglass done",
    "wide": "taxi; bicycle; helicopter; teapot",
}


def plain_name(label: str) -> str:
    """Return the name of a concept as captions spell it."""
    is_animal = any(label in CONCEPTS[group] for group in ("animal", "bird"))
    name = label.removesuffix(" face") if is_animal else label
    return PLAIN_NAMES.get(name, name).lower()


def list_concepts() -> dict[str, str]:
    """Return a mapping from every concept's label to its category, in a fixed order."""
    return _invert(CONCEPTS)


def list_canvases(split: str) -> dict[str, str]:
    """Return a mapping from every subject's label to its canvas, for "train" or "validation"."""
    return _invert({"train": TRAIN_SUBJECTS, "validation": VALIDATION_SUBJECTS}[split])


def _invert(groups: dict[str, str]) -> dict[str, str]:
    return {name.strip(): group for group, names in groups.items() for name in names.split(";")}
