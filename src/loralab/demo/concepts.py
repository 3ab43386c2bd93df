"""Subjects of the embedded demo: which emoji the tiny base model knows.

Labels are those of emojibase-data. The category becomes a tag of the caption. The validation
subjects are taught to the base like all others, but never shown to the demo LoRA.
"""

CONCEPTS: dict[str, str] = {
    "face": "grinning face; winking face; smiling face with heart-eyes; "
    "smiling face with sunglasses; thinking face; sleeping face; crying face; angry face; "
    "nerd face; face with medical mask; smiling face with halo; clown face; robot; alien; ghost; "
    "skull; jack-o-lantern",
    "animal": "monkey face; dog face; fox; cat face; lion; tiger face; horse face; zebra; deer; "
    "cow face; pig face; giraffe; elephant; mouse face; rabbit face; bat; bear; koala; panda; "
    "frog; turtle; snake; dragon face; spouting whale; fish; tropical fish; shark; octopus; "
    "crab; snail; butterfly; honeybee; lady beetle; spider; teddy bear",
    "bird": "rooster; baby chick; penguin; duck; owl; flamingo; parrot",
    "plant": "rose; sunflower; tulip; cherry blossom; evergreen tree; palm tree; cactus; "
    "four leaf clover; maple leaf; mushroom",
    "fruit": "grapes; watermelon; tangerine; lemon; banana; pineapple; red apple; pear; "
    "cherries; strawberry; tomato; avocado",
    "vegetable": "eggplant; carrot; ear of corn; hot pepper; broccoli",
    "food": "bread; baguette bread; pretzel; cheese wedge; hamburger; french fries; pizza; "
    "hot dog; taco; cooking; popcorn; sushi; soft ice cream; doughnut; birthday cake; cupcake; "
    "lollipop",
    "drink": "glass of milk; hot beverage; teapot; wine glass; beer mug; cup with straw",
    "vehicle": "locomotive; bus; police car; taxi; automobile; tractor; motorcycle; bicycle; "
    "sailboat; ship; airplane; helicopter; rocket; flying saucer",
    "building": "house; castle; classical building; tent; Tokyo tower; ferris wheel; volcano",
    "sky": "sun; crescent moon; star; cloud; rainbow; snowflake; high voltage; ringed planet; "
    "fire; droplet; umbrella; snowman",
    "sport": "soccer ball; basketball; american football; pool 8 ball; bullseye; trophy",
    "music": "trumpet; guitar; violin; microphone; headphone; bell",
    "clothing": "sunglasses; t-shirt; jeans; dress; backpack; running shoe; high-heeled shoe; "
    "crown; top hat; ring",
    "object": "balloon; wrapped gift; game die; video game; gem stone; mobile phone; battery; "
    "laptop; camera; magnifying glass tilted left; candle; light bulb; red paper lantern; "
    "closed book; money bag; envelope; package; pencil; locked; key; hammer; bomb; shield; gear; "
    "pill; door; chair; alarm clock; hourglass done; vertical traffic light; anchor; scissors",
    "heart": "red heart; blue heart; green heart; yellow heart; broken heart",
}

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
}

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
    "guitar; crown; umbrella",
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
