"""The words that the generator draws from."""

GIRLS = (
    "Anna Mia Lily Nora Ella Rosa Clara Ruby Ivy Hazel Maya Tara Lucy Emma Sara Zoë Chloé Renée Amélie Inès Olga Petra "
    "Wanda Daisy Alice Nina Lena Freya Greta Maria Elena Sofia Julia Laura Hana Yuki Mei Priya Amina Fatima Leila Nadia "
    "Zara Kira Tess Molly Poppy Willow Pearl Edith Martha Agnes Flora Luna Stella Iris Violet June May Abby Bella Cora"
).split()
BOYS = (
    "Tom Ben Sam Max Leo Jack Finn Noah Oscar Hugo Theo Milo Felix Oliver Henry José André Björn Émile Søren Tim Peter "
    "Paul Simon David Daniel Adam Luke Mark Nico Marco Pablo Diego Ivan Boris Omar Ali Karim Hassan Ravi Arjun Kenji Hiro "
    "Chen Wei Kofi Jamal Otto Emil Karl Anton Walter Arthur Edgar Victor George Harry Charlie Eddie Toby Jonah Caleb Silas"
).split()
PET_NAMES = (
    "Pip Biscuit Button Pepper Ginger Clover Maple Pebble Socks Whiskers Bramble Nutmeg Thistle Marble Truffle Scout "
    "Patch Rusty Misty Sunny Shadow Comet Waffles Olive Juniper Mocha Hopper Dash Fern Moss"
).split()

CHILD = ["girl", "boy"]
GROWN = (
    "baker farmer teacher sailor painter gardener tailor carpenter fisher doctor cook shepherd miller potter clockmaker "
    "librarian musician nurse beekeeper weaver blacksmith inventor"
).split()
ANIMALS = (
    "fox rabbit bear mouse squirrel hedgehog owl badger otter frog turtle duck goose crow deer wolf beaver mole raccoon "
    "sparrow cat dog goat donkey pony lamb penguin seal monkey elephant lion tiger koala kangaroo parrot"
).split()
FANTASY = "dragon robot giant wizard fairy ghost troll goblin mermaid snowman".split()
TRAITS = (
    "little young brave shy kind clever curious quiet cheerful stubborn gentle careful lazy proud honest hungry sleepy "
    "patient playful lonely small clumsy thoughtful friendly"
).split()

COLORS = "red blue green yellow white black brown purple orange pink silver golden grey".split()
SIZES = "small tiny little large big long old new shiny heavy wooden soft round beautiful strange broken plain".split()
OBJECTS = (
    "kite ball book lantern key basket blanket drum flute boat bell map clock hat scarf ring box bag cup coat mirror "
    "paintbrush whistle candle compass button necklace wagon bicycle umbrella doll puppet telescope jar teapot feather "
    "stone shell coin notebook violin pencil glove boot pillow rope ladder bucket shovel"
).split()
FOODS = (
    "bread soup cheese apple_pie honey_cake pancakes porridge noodles rice stew berries cookies toast jam carrot_soup "
    "roasted_potatoes a_sandwich warm_milk hot_chocolate tea lemonade apples plums pumpkin_pie crêpes"
).split()
FOODS = [f.replace("_", " ") for f in FOODS]

PLACES = [
    "the forest", "the village", "the market", "the harbor", "the old mill", "the river", "the lake", "the hill",
    "the meadow", "the garden", "the library", "the school", "the bakery", "the castle", "the beach", "the cave",
    "the lighthouse", "the train station", "the bridge", "the park", "the barn", "the orchard", "the tower",
    "the valley", "the café", "the workshop", "the mountain path", "the town square", "the island", "the windmill",
]  # fmt: skip
INSIDE = [
    "under the bed", "behind the door", "on the kitchen table", "in the attic", "in the cellar", "in the old chest",
    "under the stairs", "behind the curtain", "in a drawer", "on the top shelf", "in the garden shed", "beside the well",
    "under the apple tree", "in the tall grass", "behind the barn", "in the hollow tree", "on the window sill",
]  # fmt: skip

RULES = {
    "color": COLORS,
    "size": SIZES,
    "place": PLACES,
    "inside": INSIDE,
    "food": FOODS,
    "object": OBJECTS,
    "home": [
        "a {small|little|quiet|pretty|sleepy|busy} {village|town} {by the sea|near the forest|between two hills|at the "
        "foot of a mountain|on the edge of a lake|beside a wide river}",
        "a {small|little|tall|narrow|crooked|white|blue} house {near <place>|by the sea|at the edge of the woods|on a "
        "green hill|at the end of a long road}",
        "a {cottage|cabin} {in the woods|near <place>|by a stream|with a red roof}",
        "a farm {near <place>|with many animals|outside the town|in the north}",
        "a {big|noisy|bright|busy} city {full of lights|with tall buildings|near the ocean}",
    ],
    "morning": [
        "{one|early one} {morning|day}", "one {sunny|rainy|cold|warm|windy|foggy|quiet|snowy} {morning|afternoon|day}",
        "one {spring|summer|autumn|winter} {morning|evening|day|afternoon}", "on {Monday|Tuesday|Wednesday|Thursday|"
        "Friday|Saturday|Sunday} {morning|afternoon}", "one day", "early in the morning", "late one afternoon",
    ],
    "later": [
        "later {that day|that afternoon|that evening|in the day}", "after {a while|a short time|some time|an hour}",
        "the next {day|morning}", "a few {minutes|hours|days} later", "when evening came", "before long", "soon",
        "at last", "in the end",
    ],
    "weather": [
        "The {sun was shining|sky was {blue|grey|clear|pink}|wind was {cold|strong|gentle|warm}|air {was fresh|smelled of "
        "{rain|flowers|the sea|fresh bread}}}.",
        "It was {raining|snowing|a {warm|cold|bright|windy|quiet} day}{| outside}.",
        "{Birds were singing in the trees|Leaves were falling from the trees|Clouds moved slowly across the sky|A light "
        "{rain|snow} was falling|The stars were bright|The moon was full and round|Fog covered <place>}.",
    ],
    "happy": ["happy", "glad", "very happy", "proud", "delighted", "cheerful", "full of joy", "excited"],
    "sad": ["sad", "very sad", "upset", "unhappy", "disappointed", "close to tears", "worried", "lonely"],
    "afraid": ["afraid", "scared", "nervous", "frightened", "a little afraid"],
    "said": ["said", "said", "said", "replied", "answered", "whispered"],
    "asked": ["asked"],
    "quickly": ["quickly", "slowly", "quietly", "carefully", "happily", "softly", "gently", "at once", "right away"],
    "walked": ["walked", "ran", "hurried", "went", "wandered", "set off"],
    "lookfor": ["looked", "searched", "looked carefully"],
    "smile": [
        "<A> {smiled|laughed|nodded|grinned}.", "{a big|a small|a warm} smile {came over|appeared on} <A.his> face.",
        "<A> {jumped|clapped|danced} {for joy|with delight}.",
    ],
    "thanks": [
        "\"Thank you{|, <B>|, my friend| so much| very much}{!|.}\" said <A>. \"{You are {very|so} kind|I will never "
        "forget this|I do not know what I would do without you|You are a true friend}{.|!}\"",
        "<A> thanked <B> {many times|with all <A.his> heart|and gave <B.him> a hug}.",
    ],
    "trait": TRAITS,
    "cold": ["cold", "warm", "rainy", "sunny", "windy"],
    "child": ["girl", "boy", "captain", "queen", "knight"],
    "detail": [
        "<A> {liked|loved} to {read books|climb trees|sing songs|bake bread|draw pictures|look at the stars|walk along "
        "the river|collect {shells|stones|leaves|feathers}|tell stories|help in the garden|watch the {boats|birds|clouds}|"
        "play the {flute|drum|violin}|eat <food>}.",
        "<A.he> {always wore|often carried|kept|owned} {a <color> <object>|an old <object>|a <size> <color> <object>}"
        "{|, and everybody knew <A.him> for it| that had once belonged to <A.his> {grandmother|grandfather|uncle|aunt}}.",
        "every {morning|evening|day}, <A> {walked to <place>|fed the birds|swept the floor|watered the flowers|said good "
        "{morning|evening} to <B>|sat by the window and {watched the clouds|drank tea|listened to the wind}}.",
        "<A.his> best friend was <B>, {a <trait> <B.kind>|a <B.kind> who lived nearby|a <B.kind> from <place>}.",
        "people said that <A> was the {kindest|bravest|most curious|most patient|cleverest} <A.kind> they {knew|had ever met}.",
    ],
    "travel": [
        "<A> <walked> {past <place>|along the {river|road|shore|path}|through {the woods|the fields|the town}}"
        "{| and over a {small|wooden|stone} bridge| until <A.his> feet hurt| for a long time| without looking back}.",
        "the {road|path|way} was {long|steep|muddy|narrow|quiet}, but <A> {did not stop|kept going|did not mind|sang a song to keep up <A.his> spirits}.",
        "on the way, <A.he> {saw {a <color> bird|two rabbits|an old cart|a field of flowers|a boat on the water}|crossed a "
        "stream|stopped to {rest|drink some water|eat some bread}|met {an old woman|an old man|a farmer|a cat} who {waved|"
        "smiled|wished <A.him> luck}}.",
    ],
    "evening": [
        "{That evening|That night|When the sun went down}, they {ate <food> together|sat by the fire and told stories|shared <food> "
        "and laughed|watched the stars|sang songs until it was late}.",
    ],
    "end": [
        "<A> {went to bed|fell asleep|went home} {with a smile|feeling happy|tired but happy} that night.",
        "and from that day on, <A> and <B> were {the best of friends|good friends|never apart for long}.",
        "and they all lived happily {ever after|for many years}.",
        "it had been a {long|good|wonderful|strange} day, and <A> would {never forget it|remember it for a long time}.",
        "<evening>", "<evening>",
        "and if you ever visit <place>, you may {see|meet} <A> and <B> there {still|even today}.",
        "\"{What a day|What an adventure|Today was a good day}!\" said <A>, and <B> {agreed|nodded|laughed}.",
    ],
}  # fmt: skip
