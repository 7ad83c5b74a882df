"""Instructions and recipes, letters, diaries, conversations, descriptions, poems and stories with questions."""

import lexicon
from facts import DAYS, MONTHS
from grammar import polish
from stories import cast, set_stage

RECIPES = {
    "tomato soup": (["6 tomatoes", "1 onion", "2 cups of water", "a little oil", "salt and pepper"],
        ["Wash the tomatoes and cut them into small pieces.", "{Chop|Peel and chop} the onion.", "Heat the oil in a pot and cook the onion until it is soft.",
         "Add the tomatoes and the water.", "Let the soup cook for {20|25|30} minutes.", "Add salt and pepper and {serve it hot|eat it with bread}."]),
    "pancakes": (["2 eggs", "1 cup of flour", "1 cup of milk", "a pinch of salt", "a little butter"],
        ["Mix the eggs and the milk in a bowl.", "Add the flour and the salt and stir until it is smooth.", "Melt a little butter in a pan.",
         "Pour some of the batter into the pan.", "When the {bottom is golden|edges are brown}, turn the pancake over.", "Serve with {jam|honey|berries|sugar}."]),
    "bread": (["3 cups of flour", "1 cup of warm water", "1 spoon of yeast", "1 spoon of salt"],
        ["Mix the yeast with the warm water.", "Add the flour and the salt.", "Knead the dough for ten minutes.", "Cover it and let it rise for {one hour|two hours}.",
         "Form a loaf and put it on a tray.", "Bake it for {30|35|40} minutes at 220 °C."]),
    "apple pie": (["4 apples", "2 cups of flour", "1 cup of sugar", "some butter", "a little cinnamon"],
        ["Peel the apples and cut them into slices.", "Mix the flour, the butter and half of the sugar to make a dough.", "Press the dough into a round dish.",
         "Put the apples on the dough and add the rest of the sugar and the cinnamon.", "Bake the pie for {40|45} minutes at 180 °C.", "Let it cool before you cut it."]),
    "vegetable rice": (["1 cup of rice", "2 carrots", "a handful of peas", "1 onion", "2 cups of water"],
        ["Wash the rice.", "Chop the carrots and the onion.", "Fry the onion for a few minutes.", "Add the rice, the carrots, the peas and the water.",
         "Cover the pot and cook for {15|20} minutes.", "Stir well and serve."]),
    "lemonade": (["3 lemons", "1 liter of cold water", "4 spoons of sugar", "some ice"],
        ["Cut the lemons in half and press out the juice.", "Mix the juice with the sugar.", "Add the cold water and stir.", "Put {ice|ice and a few leaves of mint} into the glasses.", "Pour the lemonade and enjoy it. 🍋"]),
    "fruit salad": (["2 apples", "2 bananas", "1 orange", "a handful of berries"],
        ["Wash the fruit.", "Peel the bananas and the orange.", "Cut everything into small pieces.", "Mix the pieces in a large bowl.", "Add a little {honey|lemon juice} and serve."]),
    "crêpes": (["3 eggs", "2 cups of flour", "2 cups of milk", "a little butter"],
        ["Mix the flour and the eggs.", "Add the milk slowly and stir well.", "Let the batter rest for half an hour.", "Cook thin crêpes in a hot pan with a little butter.", "Fill them with {jam|chocolate|cheese} and fold them."]),
}  # fmt: skip

HOW_TO = {
    "plant a seed": ["Fill a pot with earth.", "Make a small hole with your finger.", "Put the seed into the hole and cover it.", "Water it a little every {day|morning}.", "Put the pot {in the sun|on the window sill}.", "Wait until the first leaves appear. 🌱"],
    "make tea": ["Boil some water.", "Put {a tea bag|some tea leaves} into a cup.", "Pour the hot water into the cup.", "Wait for {three|four|five} minutes.", "Take out the tea and add {honey|milk|sugar|lemon} if you like."],
    "wash your hands": ["Turn on the water.", "Make your hands wet.", "Take some soap and rub your hands for twenty seconds.", "Rinse them with clean water.", "Dry them with a towel."],
    "build a kite": ["Take two thin sticks and tie them together in the form of a cross.", "Tie a string around the ends of the sticks.", "Cut a sheet of paper and glue it to the frame.", "Add a long tail.", "Tie a long string to the middle.", "Go outside on a windy day and let it fly. 🪁"],
    "paint a wall": ["Move the furniture away from the wall.", "Cover the floor.", "Stir the paint well.", "Paint the edges with a small brush.", "Paint the rest with a roller.", "Let it dry for {a few hours|one day}."],
    "write a letter": ["Take a sheet of paper and a pen.", "Write the date at the top.", "Begin with \"Dear\" and the name of your friend.", "Tell your friend what you have done.", "Ask a question or two.", "Sign your name and put the letter into an envelope."],
    "learn a new word": ["Read the word aloud.", "Look up what it means.", "Write a sentence with it.", "Use it when you talk to a friend.", "Repeat it the next day."],
    "pack for a trip": ["Make a list of what you need.", "Look at the weather report.", "Put clothes for each day into the bag.", "Do not forget your {toothbrush|ticket|coat}.", "Close the bag and check that it is not too heavy."],
    "fix a flat tire": ["Take the wheel off the bicycle.", "Remove the tire and take out the tube.", "Find the hole.", "Clean the place and glue a patch over the hole.", "Put everything back and pump it up."],
    "clean a room": ["Open the window.", "Pick up everything from the floor.", "Put the books back on the shelf.", "Wipe the table.", "Sweep the floor.", "Enjoy your clean room."],
    "build a snowman": ["Roll a big ball of snow.", "Roll a smaller ball and put it on the first one.", "Roll the smallest ball for the head.", "Use stones for the eyes and a carrot for the nose.", "Give him a hat and a scarf. ⛄"],
    "fall asleep": ["Turn off all screens.", "Open the window for a few minutes.", "Read {a few pages of|} a quiet book.", "Turn off the light.", "Close your eyes and breathe slowly."],
}  # fmt: skip


def numbered(scene, steps):
    return "\n".join(f"{i}. {scene.expand(step)}" for i, step in enumerate(steps, 1))


def recipe(scene):
    name, (needs, steps) = scene.rng.choice(list(RECIPES.items()))
    title = scene.rng.choice([f"How to make {name}", f"Recipe: {name[0].upper()}{name[1:]}", f"{name[0].upper()}{name[1:]}"])
    things = "\n".join("- " + need for need in needs)
    ending = scene.maybe(0.4, "\n\n{Enjoy your meal!|Bon appétit!|This is enough for four people.|It tastes best with friends.}")
    return f"{title}\n\nYou need:\n{things}\n\n{numbered(scene, steps)}{scene.expand(ending)}"


def instructions(scene):
    task, steps = scene.rng.choice(list(HOW_TO.items()))
    head = scene.rng.choice(
        [f"How to {task}\n\n", f"How to {task}:\n", f"User: How do I {task}?\nAssistant: Follow these steps:\n".replace("your", "my"), f"Question: How do I {task}?\nAnswer:\n".replace("your", "my")]
    )
    return head + numbered(scene, steps)


ERRANDS = (
    "{went to <place>|visited <place>|helped in the garden|baked bread|read a book about {the stars|the sea|animals|a brave <child>}|"
    "repaired an old <object>|painted the {door|fence} <color>|met <B> {at|near} <place>|learned to <skill>|bought a <color> <object>|"
    "cooked <food> for everyone|planted {flowers|beans|a tree}|found a <size> <object>|played with <B>}"
)
GREETINGS = "{I hope you are well.|How are you?|I have not heard from you for a long time.|Thank you for your letter.|It is <cold> here, but I am fine.}"
FAREWELLS = "{Please write soon.|I hope to see you soon.|Come and visit us in {spring|summer|autumn|winter}!|Give my love to {everyone|your family}.|I miss you.}"
MOOD = "{I felt <happy>.|It was {a lovely|a long|a wonderful|an unusual} day.|I was tired but happy.|It was more fun than I had thought.|I laughed a lot.}"


def bind_more(scene):
    cast(scene)
    set_stage(scene)
    scene.bind(dayname=scene.rng.choice(DAYS), dayname2=scene.rng.choice(DAYS))


def letter(scene):
    bind_more(scene)
    body = scene.say(GREETINGS, f"{{Yesterday|Last week|On <dayname>|This morning}} I {ERRANDS}.", MOOD, scene.maybe(0.6, "<weather>"),
                     f"{{Tomorrow|Next week|On <dayname2>}} I {{want|am going|would like}} to {{visit <place>|see <B>|try to <skill>|go for a walk|rest}}.", FAREWELLS)  # fmt: skip
    emoji = scene.rng.choice(["", "", " 🙂", " ❤️", " 🌞", " 🎉"])
    sign = scene.say("{Your friend|With love|Yours|Many greetings|Best wishes},")
    return f"Dear {scene.bound['C']},\n\n{body}{emoji}\n\n{sign}\n{scene.bound['A']}"


def diary(scene):
    bind_more(scene)
    day, month = scene.rng.choice(DAYS), scene.rng.choice(MONTHS)
    head = scene.rng.choice([f"{day}, {scene.rng.randint(1, 28)} {month}", f"Dear diary, today is {day}.", "Dear diary,"])
    body = scene.say("<weather>", f"{{In the morning|After breakfast|Before noon}} I {ERRANDS}.", f"{{Then|After that|In the afternoon|Later}} I {ERRANDS}.",
                     scene.maybe(0.5, f"{{In the evening|After dinner|At night}} I {ERRANDS}."), MOOD, scene.maybe(0.5, "{Good night!|Now I am going to bed.|Tomorrow will be another day.|I am very tired now.}"))  # fmt: skip
    return f"{head}\n\n{body}"


TALK = [
    ("{Hello|Good morning|Good evening|Hi}, <B>! How are you?", "{I am fine, thank you|Very well, thanks|A little tired}. And you?"),
    ("What did you do {yesterday|today|on <dayname>|last week}?", f"I {ERRANDS}. {MOOD}"),
    ("Do you like <food>?", "{Yes, I love it|No, I prefer bread and cheese|I have never tried it|Only on Sundays}. {What about you?|Why do you ask?|}"),
    ("What is the weather like {where you are|today|outside}?", "<weather> {It may change tomorrow.|I like it that way.|}"),
    ("Have you seen my <color> <object>?", "{Yes, it is <inside>|No, I have not seen it|Maybe it is <inside>}."),
    ("Would you like to go to <place> with me?", "{Yes, that is a good idea|I would love to|Not today, but maybe tomorrow|Only if we can take some <food> with us}."),
    ("Can you help me? I want to <skill>.", "{Of course! Let us start at once|I will try. I am still learning it myself|Yes. It only takes a little practice}."),
    ("What is your favorite color?", "My favorite color is <color>. {It reminds me of <place>.|It is the color of my <object>.|}"),
    ("Do you know <C>?", "{Yes, <C> is a friend of mine|I have heard of <C.him>|No, who is that}{.|!}"),
]
GOODBYE = ("{It is late. I have to go.|See you tomorrow!|Goodbye, <B>!}", "{Goodbye!|See you soon!|Take care! 👋|Good night! 🌙}")


def conversation(scene):
    bind_more(scene)
    names = (scene.bound["A"].name, scene.bound["B"].name)
    turns = [TALK[0]] + scene.rng.sample(TALK[1:], scene.rng.randint(2, 5)) + [GOODBYE]
    lines = [f"{name}: {scene.say(line)}" for turn in turns for name, line in zip(names, turn, strict=True)]
    return "\n".join(lines)


def about_person(scene):
    bind_more(scene)
    if scene.rng.random() < 0.5:
        return scene.say(
            "{Hello|Hi|Hello there}{!|,} my name is <A>{.| and I am a <A.kind>.}", "I live in <home>.",
            "{I like to <skill> and to {read|sing|cook|walk}.|I work near <place>.|I have a <size> <object>.}",
            "My {favorite food is <food>|favorite color is <color>|best friend is <B>}.", "{What is your name?|And who are you?|It is nice to meet you!|}",
        )  # fmt: skip
    return scene.say(
        "<A> is a <trait_a> <A.kind> from <home>.", "{<A.he> has a <color> <object> and a <size> <object>.|<A.he> works near <place>.}",
        "<A.his> favorite food is <food>, and <A.his> favorite color is <color>.",
        "{On weekends|Every evening|In summer}, <A.he> likes to {walk to <place>|<skill>|cook <food>|read|sit near <place>}.",
        "{Everyone says that <A.he> is <trait_b>.|<A.his> best friend is <B>.|One day <A.he> wants to visit {Paris|Rome|Tokyo|Cairo|Lima}.}",
    )  # fmt: skip


def weather_report(scene):
    rng = scene.rng
    scene.bind(dayname=rng.choice(DAYS), dayname2=rng.choice(DAYS))
    sky = "{sunny|cloudy|rainy|windy|foggy|snowy|clear}"
    low = rng.randint(-5, 20)
    return scene.say(
        f"{{The weather|The weather report|The weather for <dayname>}}: {{today|in the morning}} it will be {sky}, and in the {{afternoon|evening}} it will be {sky}.",
        f"The temperature will be between {low} °C and {low + rng.randint(2, 9)} °C.",
        "{Take an umbrella with you.|It is a good day for a walk.|Stay warm!|A light wind comes from the {north|south|east|west}.|}",
        f"{{Tomorrow|On <dayname2>}} it will be {{{sky} again|warmer|colder|{sky}}}.",
    )


RHYMES = [("day", "way"), ("night", "light"), ("sea", "tree"), ("sky", "high"), ("rain", "lane"), ("moon", "June"), ("snow", "glow"), ("star", "far"), ("hill", "still"), ("spring", "sing")]  # fmt: skip
LINES = {
    "day": "{The sun has come to bring the|A little bird greets the|We wake and smile at the new} day", "way": "{And gently shows us all the|The wind will blow and find its|The river sings along the} way",
    "night": "{The stars come softly in the|The owl is calling in the|How quiet is the winter} night", "light": "{The moon above gives silver|The lamp is out, but there is|And every window holds a} light",
    "sea": "{The boats go out upon the|I hear the song of the wide|The river runs down to the} sea", "tree": "{The wind is resting in the|A bird is building in the|And I sit here beneath the} tree",
    "sky": "{The clouds are sailing through the|A kite is dancing in the|The evening paints the summer} sky", "high": "{The little lark is flying|The mountain stands so tall and|And every dream is climbing} high",
    "rain": "{I love the silver sound of|The flowers drink the morning|The roof is singing in the} rain", "lane": "{The children run along the|A snail is walking down the|And puddles shine along the} lane",
    "moon": "{The cat looks up and sees the|A song is rising to the|The lake is holding up the} moon", "June": "{It is a quiet night in|The roses open wide in|And all the world smells sweet in} June",
    "snow": "{The world is white with winter|A fox has walked across the|How softly falls the evening} snow", "glow": "{The fires in the houses|And all the windows start to|The stars above begin to} glow",
    "star": "{I make a wish upon a|My heart is like a little|Above the roof there is a} star", "far": "{The road is long, the hills are|The ships have traveled very|A bell is ringing from so} far",
    "hill": "{The sheep are sleeping on the|A tower stands upon the|The wind has run across the} hill", "still": "{The lake is deep, the lake is|And now the busy world is|The night is dark, the air is} still",
    "spring": "{The snow is gone, and it is|The garden wakes, for it is|The earth is green again in} spring", "sing": "{And all the birds begin to|The brook has found a song to|Come out with us to dance and} sing",
}  # fmt: skip


def poem(scene):
    title = scene.say("{A Song|A Poem|A Small Poem|Evening Song|Morning Song|A Rhyme}")
    verses = []
    for pair in scene.rng.sample(RHYMES, 2 * scene.rng.choice((1, 1, 2))):
        verses.append(",\n".join(scene.say(LINES[word]) for word in pair) + ".")
    stanzas = ["\n".join(verses[i : i + 2]) for i in range(0, len(verses), 2)]
    return (title + "\n\n" if scene.rng.random() < 0.6 else "") + "\n\n".join(stanzas)


def reading(scene):
    """A few statements, then questions about them."""
    rng = scene.rng
    bind_more(scene)
    a, b = scene.bound["A"].name, scene.bound["B"].name
    objects, places, colors = rng.sample(lexicon.OBJECTS, 2), rng.sample(lexicon.PLACES, 2), rng.sample(lexicon.COLORS, 2)
    text = f"{a} has a {colors[0]} {objects[0]}. {b} has a {colors[1]} {objects[1]}. "
    text += rng.choice([f"{a} went to {places[0]}, and {b} went to {places[1]}.", f"{a} is at {places[0]}. {b} is at {places[1]}."])
    pairs = [
        (f"What does {a} have?", f"{a} has a {colors[0]} {objects[0]}."), (f"What does {b} have?", f"{b} has a {colors[1]} {objects[1]}."),
        (f"Who has the {objects[0]}?", f"{a} has the {objects[0]}."), (f"Who has the {objects[1]}?", f"{b} has the {objects[1]}."),
        (f"What color is the {objects[0]}?", f"The {objects[0]} is {colors[0]}."), (f"What color is the {objects[1]}?", f"The {objects[1]} is {colors[1]}."),
    ]  # fmt: skip
    chosen = rng.sample(pairs, rng.randint(1, 3))
    return scene.say(text) + "\n\n" + "\n\n".join(f"Question: {q}\nAnswer: {polish(x)}" for q, x in chosen)


def chat(scene):
    """A chat message with emoji."""
    bind_more(scene)
    return scene.say(
        "{Hi|Hello|Hey} <C>{!|,} {👋|😊|🙂|}",
        f"{{I just|Today I|Yesterday I}} {ERRANDS}{{!|.}} {{🎉|😀|🌞|🐶|🐱|❤️|🚲|☕|}}",
        "{Do you want to come over {tonight|tomorrow|on <dayname>}?|Are you free on <dayname>?|Call me when you can.|What are you doing?|See you at <place>!} {👍|😄|🍰|}",
    )
