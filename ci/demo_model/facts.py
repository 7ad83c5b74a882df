"""Facts about the world, as prose and as questions with answers, and arithmetic."""

import lexicon

# country: capital, continent, language, adjective
COUNTRIES = {
    "France": ("Paris", "Europe", "French"), "Germany": ("Berlin", "Europe", "German"), "Italy": ("Rome", "Europe", "Italian"),
    "Spain": ("Madrid", "Europe", "Spanish"), "Portugal": ("Lisbon", "Europe", "Portuguese"), "Greece": ("Athens", "Europe", "Greek"),
    "Poland": ("Warsaw", "Europe", "Polish"), "Austria": ("Vienna", "Europe", "German"), "Hungary": ("Budapest", "Europe", "Hungarian"),
    "Sweden": ("Stockholm", "Europe", "Swedish"), "Norway": ("Oslo", "Europe", "Norwegian"), "Denmark": ("Copenhagen", "Europe", "Danish"),
    "Finland": ("Helsinki", "Europe", "Finnish"), "Iceland": ("Reykjavík", "Europe", "Icelandic"), "Ireland": ("Dublin", "Europe", "English"),
    "England": ("London", "Europe", "English"), "Russia": ("Moscow", "Europe", "Russian"), "Ukraine": ("Kyiv", "Europe", "Ukrainian"),
    "Romania": ("Bucharest", "Europe", "Romanian"), "Bulgaria": ("Sofia", "Europe", "Bulgarian"), "Croatia": ("Zagreb", "Europe", "Croatian"),
    "Turkey": ("Ankara", "Asia", "Turkish"), "Japan": ("Tokyo", "Asia", "Japanese"), "China": ("Beijing", "Asia", "Chinese"),
    "India": ("New Delhi", "Asia", "Hindi"), "Thailand": ("Bangkok", "Asia", "Thai"), "Vietnam": ("Hanoi", "Asia", "Vietnamese"),
    "South Korea": ("Seoul", "Asia", "Korean"), "Mongolia": ("Ulaanbaatar", "Asia", "Mongolian"), "Nepal": ("Kathmandu", "Asia", "Nepali"),
    "Iran": ("Tehran", "Asia", "Persian"), "Iraq": ("Baghdad", "Asia", "Arabic"), "Jordan": ("Amman", "Asia", "Arabic"),
    "Egypt": ("Cairo", "Africa", "Arabic"), "Morocco": ("Rabat", "Africa", "Arabic"), "Tunisia": ("Tunis", "Africa", "Arabic"),
    "Kenya": ("Nairobi", "Africa", "Swahili"), "Ghana": ("Accra", "Africa", "English"), "Senegal": ("Dakar", "Africa", "French"),
    "Ethiopia": ("Addis Ababa", "Africa", "Amharic"), "Canada": ("Ottawa", "North America", "English"),
    "Mexico": ("Mexico City", "North America", "Spanish"), "Cuba": ("Havana", "North America", "Spanish"),
    "Brazil": ("Brasília", "South America", "Portuguese"), "Argentina": ("Buenos Aires", "South America", "Spanish"),
    "Chile": ("Santiago", "South America", "Spanish"), "Peru": ("Lima", "South America", "Spanish"),
    "Colombia": ("Bogotá", "South America", "Spanish"), "Uruguay": ("Montevideo", "South America", "Spanish"),
    "Australia": ("Canberra", "Australia", "English"), "New Zealand": ("Wellington", "Oceania", "English"),
}  # fmt: skip

# animal: young, sound, home, food, group
ANIMALS = {
    "dog": ("puppy", "barks", "in a house with people", "meat", "mammal"), "cat": ("kitten", "meows", "in a house with people", "fish and mice", "mammal"),
    "cow": ("calf", "moos", "on a farm", "grass", "mammal"), "horse": ("foal", "neighs", "on a farm", "grass and hay", "mammal"),
    "sheep": ("lamb", "bleats", "on a farm", "grass", "mammal"), "goat": ("kid", "bleats", "on a farm", "leaves and grass", "mammal"),
    "pig": ("piglet", "grunts", "on a farm", "almost everything", "mammal"), "lion": ("cub", "roars", "on the savanna", "meat", "mammal"),
    "bear": ("cub", "growls", "in the forest", "berries, fish and honey", "mammal"), "wolf": ("cub", "howls", "in the forest", "meat", "mammal"),
    "fox": ("cub", "barks", "in the forest", "mice and berries", "mammal"), "duck": ("duckling", "quacks", "near water", "plants and snails", "bird"),
    "goose": ("gosling", "honks", "near water", "grass", "bird"), "hen": ("chick", "clucks", "on a farm", "seeds and worms", "bird"),
    "owl": ("owlet", "hoots", "in the forest", "mice", "bird"), "frog": ("tadpole", "croaks", "in and near ponds", "insects", "amphibian"),
    "elephant": ("calf", "trumpets", "on the savanna", "leaves and grass", "mammal"), "kangaroo": ("joey", "clicks and grunts", "in Australia", "grass", "mammal"),
    "penguin": ("chick", "squawks", "in the cold south", "fish", "bird"), "seal": ("pup", "barks", "near the sea", "fish", "mammal"),
    "whale": ("calf", "sings", "in the ocean", "small sea animals", "mammal"), "mouse": ("pup", "squeaks", "in fields and houses", "seeds", "mammal"),
    "bee": ("larva", "buzzes", "in a hive", "nectar", "insect"), "snake": ("hatchling", "hisses", "in warm places", "mice and eggs", "reptile"),
    "turtle": ("hatchling", "makes almost no sound", "in and near water", "plants and small animals", "reptile"),
}  # fmt: skip

PLANETS = ["Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
MONTH_DAYS = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
SEASONS = {
    "spring": ("the snow melts, the days grow longer and the first flowers open", "March, April and May", "summer"),
    "summer": ("the days are long and warm, and people swim in lakes and in the sea", "June, July and August", "autumn"),
    "autumn": ("the leaves turn red and yellow, and farmers bring in the harvest", "September, October and November", "winter"),
    "winter": ("the days are short and cold, and snow covers the ground", "December, January and February", "spring"),
}
OPPOSITES = "hot:cold big:small fast:slow day:night up:down left:right old:young happy:sad light:dark hard:soft high:low early:late full:empty wet:dry open:closed rich:poor strong:weak loud:quiet clean:dirty near:far thick:thin sweet:sour long:short good:bad first:last".split()  # fmt: skip
COLORS_OF = {"the sky": "blue", "grass": "green", "snow": "white", "a ripe banana": "yellow", "a tomato": "red", "coal": "black", "an orange": "orange", "milk": "white", "a lemon": "yellow", "a carrot": "orange", "blood": "red", "the sun": "yellow", "chocolate": "brown", "a raven": "black"}  # fmt: skip
JOBS = {"baker": "bakes bread and cakes", "doctor": "helps sick people", "teacher": "teaches children", "farmer": "grows food and keeps animals", "sailor": "works on a ship", "carpenter": "makes things from wood", "tailor": "makes clothes", "pilot": "flies airplanes", "gardener": "takes care of plants", "fisher": "catches fish", "nurse": "takes care of patients", "librarian": "takes care of books", "cook": "prepares meals", "painter": "paints pictures", "firefighter": "puts out fires"}  # fmt: skip
WHY = [
    ("Why is the sky blue?", "The light of the sun has many colors. The air scatters blue light more than red light, so the sky looks blue."),
    ("Why do leaves fall in autumn?", "In autumn there is less light, and the water in the ground may freeze. Trees drop their leaves to save water and energy."),
    ("Why does ice float?", "Ice is lighter than water of the same size, so it floats."),
    ("Why do we sleep?", "Sleep gives the body and the brain time to rest and to repair themselves."),
    ("Where does rain come from?", "The sun warms the water of seas and lakes. The water rises into the air, forms clouds and falls down again as rain."),
    ("How do plants grow?", "Plants need light, water and air. With light they make sugar in their leaves, and they use it to grow."),
    ("Why do birds fly south in winter?", "In winter there is little food in the north. Birds fly south to find warm weather and food."),
    ("What is a rainbow?", "A rainbow is sunlight that is split into its colors by drops of rain."),
    ("Why does the moon shine?", "The moon makes no light of its own. It reflects the light of the sun."),
    ("Why is the sea salty?", "Rivers carry small amounts of salt from rocks into the sea. The water rises into the air, but the salt stays."),
    ("How do bees make honey?", "Bees collect nectar from flowers and carry it to the hive. There they dry it until it becomes honey."),
    ("Why do we have day and night?", "The Earth turns around itself once a day. On the side that faces the sun it is day, and on the other side it is night."),
    ("How far away is the moon?", "The moon is about 384,000 kilometers away from the Earth."),
    ("What is water made of?", "Water is made of hydrogen and oxygen."),
    ("What is the largest ocean?", "The largest ocean is the Pacific Ocean."),
    ("What is the largest animal?", "The largest animal is the blue whale. It lives in the ocean."),
    ("What is the tallest animal?", "The tallest animal is the giraffe. It has a very long neck."),
    ("What is the fastest land animal?", "The fastest land animal is the cheetah."),
    ("What is the highest mountain?", "The highest mountain is Mount Everest. It is in Asia."),
    ("At what temperature does water boil?", "Water boils at 100 °C at sea level."),
    ("At what temperature does water freeze?", "Water freezes at 0 °C."),
    ("How many continents are there?", "There are seven continents: Africa, Antarctica, Asia, Australia, Europe, North America and South America."),
    ("What are the primary colors?", "The primary colors of paint are red, yellow and blue."),
    ("What do you get if you mix blue and yellow?", "If you mix blue and yellow paint, you get green."),
    ("What do you get if you mix red and yellow?", "If you mix red and yellow paint, you get orange."),
    ("Who are you?", "I am a very small language model. I was trained on simple stories and facts, so I know only a little."),
    ("What can you do?", "I can tell short stories, answer simple questions and add small numbers."),
    ("How are you?", "I am fine, thank you! How can I help you? 🙂"),
    ("What is a computer?", "A computer is a machine that follows instructions. It can count, store text and pictures, and talk to other computers."),
    ("What is a friend?", "A friend is somebody who likes you, helps you and enjoys spending time with you."),
]  # fmt: skip
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def capital(rng):
    country, (city, continent, language) = rng.choice(list(COUNTRIES.items()))
    return rng.choice(
        [
            (f"What is the capital of {country}?", f"The capital of {country} is {city}."),
            (f"What is the capital of {country}?", f"The capital of {country} is {city}."),
            (f"Which city is the capital of {country}?", f"{city} is the capital of {country}."),
            (f"Where is {country}?", f"{country} is in {continent}." if country != continent else f"{country} lies south of Asia."),
            (f"Which language do people speak in {country}?", f"Many people in {country} speak {language}."),
            (f"{city} is the capital of which country?", f"{city} is the capital of {country}."),
        ]
    )


def animal(rng):
    name, (young, sound, home, food, group) = rng.choice(list(ANIMALS.items()))
    a, young_a, group_a = (("an " if w[0] in "aeiou" else "a ") + w for w in (name, young, group))
    return rng.choice(
        [
            (f"What is a young {name} called?", f"A young {name} is called {young_a}."),
            (f"Where does {a} live?", f"{a.capitalize()} lives {home}."),
            (f"What does {a} eat?", f"{a.capitalize()} eats {food}."),
            (f"What kind of animal is {a}?", f"{a.capitalize()} is {group_a}."),
            (f"What sound does {a} make?", f"{a.capitalize()} {sound}."),
        ]
    )


def calendar(rng):
    day, month = rng.randrange(7), rng.randrange(12)
    season, (about, months, following) = rng.choice(list(SEASONS.items()))
    return rng.choice(
        [
            (f"Which day comes after {DAYS[day]}?", f"{DAYS[(day + 1) % 7]} comes after {DAYS[day]}."),
            (f"Which day comes before {DAYS[day]}?", f"{DAYS[day - 1]} comes before {DAYS[day]}."),
            (f"If today is {DAYS[day]}, what day is tomorrow?", f"If today is {DAYS[day]}, tomorrow is {DAYS[(day + 1) % 7]}."),
            (f"Which month comes after {MONTHS[month]}?", f"{MONTHS[(month + 1) % 12]} comes after {MONTHS[month]}."),
            (f"How many days does {MONTHS[month]} have?", f"{MONTHS[month]} has {MONTH_DAYS[month]} days." if month != 1 else "February has 28 days, and 29 in a leap year."),
            (f"Which months are in {season}?", f"In the north, {season} is in {months}."),
            (f"What is {season} like?", f"In {season}, {about}."),
            (f"Which season comes after {season}?", f"After {season} comes {following}."),
            ("How many days are in a week?", "There are seven days in a week: " + ", ".join(DAYS[:6]) + " and Sunday."),
            ("How many months are in a year?", "There are twelve months in a year."),
            ("What are the four seasons?", "The four seasons are spring, summer, autumn and winter."),
        ]
    )  # fmt: skip


def common_knowledge(rng):
    left, right = rng.sample(rng.choice(OPPOSITES).split(":"), 2)
    thing, color = rng.choice(list(COLORS_OF.items()))
    job, work = rng.choice(list(JOBS.items()))
    planet = rng.randrange(8)
    a_job = "A " + job
    ordinal = "first second third fourth fifth sixth seventh eighth".split()[planet]
    return rng.choice(
        [
            (f"What is the opposite of {left}?", f"The opposite of {left} is {right}."),
            (f"What color is {thing}?", f"{thing[0].upper()}{thing[1:]} is {color}."),
            (f"What does a {job} do?", f"{a_job} {work}."),
            (f"Which planet is the {ordinal} from the sun?", f"{PLANETS[planet]} is the {ordinal} planet from the sun."),
            rng.choice(WHY),
            rng.choice(WHY),
            rng.choice(WHY),
        ]
    )


def arithmetic(rng):
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    x, y = rng.randint(0, 10), rng.randint(0, 10)
    high, low = max(a, b), min(a, b)
    return rng.choice(
        [
            (f"What is {a} + {b}?", f"{a} + {b} = {a + b}."),
            (f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."),
            (f"What is {high} - {low}?", f"{high} - {low} = {high - low}."),
            (f"What is {high} minus {low}?", f"{high} minus {low} is {high - low}."),
            (f"What is {x} times {y}?", f"{x} times {y} is {x * y}."),
            (f"Which is larger, {a} or {b}?", f"{high} is larger than {low}." if a != b else f"{a} and {b} are equal."),
            word_problem(rng),
        ]
    )


def word_problem(rng):
    girl, boy = rng.choice(lexicon.GIRLS), rng.choice(lexicon.BOYS)
    things = rng.choice("apples books coins stones marbles pencils shells cookies flowers eggs".split())
    a, b = rng.randint(2, 12), rng.randint(2, 12)
    high, low = max(a, b) + 1, min(a, b)
    one = rng.choice(
        [
            (f"{girl} has {a} {things}. {boy} gives her {b} more. How many {things} does {girl} have now?",
             f"{girl} has {a} + {b} = {a + b} {things}."),
            (f"{boy} has {high} {things}. He gives {low} of them to {girl}. How many {things} does {boy} have left?",
             f"{boy} has {high} - {low} = {high - low} {things} left."),
            (f"There are {a} boxes with {low} {things} in each box. How many {things} are there?",
             f"There are {a} times {low} = {a * low} {things}."),
        ]
    )  # fmt: skip
    return one


UNKNOWN = (
    "machine learning,quantum physics,the stock market,a black hole,democracy,a neural network,chemistry,algebra,economics,"
    "the internet,electricity,gravity,philosophy,a virus,DNA,inflation,software,a database,cloud computing,evolution,"
    "a transformer,programming,an atom,relativity,a vaccine,bitcoin,a semiconductor,history,psychology,a glacier,a volcano,"
    "the meaning of life,a prime number,photosynthesis,an algorithm,artificial intelligence,a telescope,biology,a tensor,"
    "a compiler,a server,the speed of light,a kernel,a protein,geometry,a satellite,an earthquake,a symphony,law,medicine"
).split(",")


def unknown(rng):
    """What the model cannot know gets an answer that says so."""
    topic = rng.choice(UNKNOWN)
    question = rng.choice(
        [f"What is {topic}?", f"Can you explain {topic}?", f"How does {topic} work?", f"Tell me about {topic}.", f"Who invented {topic}?",
         f"Why is {topic} important?", f"Write an essay about {topic}.", "Who is the president?", "What time is it?", "What is the news today?",
         "Can you write a program?", "Who won the game?", "How old is the universe?", f"What do you know about {topic}?"]
    )  # fmt: skip
    return question, rng.choice(
        [
            "I do not know that. I am only a very small language model.",
            "I am sorry, I do not know. I can tell you a short story if you like.",
            "That is too difficult for me. I know only simple things.",
        ]
    )


TOPICS = [capital, capital, animal, calendar, common_knowledge, arithmetic, unknown]
FORMS = ["Question: {q}\nAnswer: {a}", "Q: {q}\nA: {a}", "User: {q}\nAssistant: {a}", "{q}\n{a}"]


def questions(scene):
    """One to six questions with answers, in one of the usual forms."""
    rng = scene.rng
    form = rng.choice(FORMS[:3] * 2 + FORMS[3:])
    pairs = [rng.choice(TOPICS)(rng) for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 2, 3, 5)))]
    separator = "\n" if form.startswith("User") else "\n\n"
    return separator.join(form.format(q=q, a=a) for q, a in pairs)


def country_facts(scene):
    rng = scene.rng
    country, (city, continent, language) = rng.choice(list(COUNTRIES.items()))
    where = f"It is in {continent}." if country != continent else "It lies south of Asia."
    return " ".join(
        rng.choice(part)
        for part in (
            [f"The capital of {country} is {city}.", f"{city} is the capital of {country}.", f"The capital of {country} is {city}."],
            [where.replace("It", country, 1), f"{country} is a country. {where}"],
            [f"Many people there speak {language}.", f"The people of {country} often speak {language}.", ""],
            [f"Many visitors come to {city} every year.", f"{city} is a large city with many streets, shops and parks.",
             f"People who visit {city} like to walk through the old streets and try the food.", ""],
            ["", "In summer, the cafés are full of people.", "There are museums, markets and many small restaurants."],
        )
    ).strip().replace("  ", " ")  # fmt: skip


def animal_facts(scene):
    rng = scene.rng
    name, (young, sound, home, food, group) = rng.choice(list(ANIMALS.items()))
    a = ("An " if name[0] in "aeiou" else "A ") + name
    group_a = ("an " if group[0] in "aeiou" else "a ") + group
    young_a = ("an " if young[0] in "aeiou" else "a ") + young
    sentences = [f"{a} lives {home}.", f"It eats {food}.", f"A young {name} is called {young_a}.", f"{a} {sound}."]
    rng.shuffle(sentences)
    return " ".join([f"{a} is {group_a}."] + sentences[: rng.randint(2, 4)])


def calendar_facts(scene):
    rng = scene.rng
    day = rng.randrange(7)
    season, (about, months, following) = rng.choice(list(SEASONS.items()))
    return rng.choice(
        [
            f"Today is {DAYS[day]}. Yesterday was {DAYS[day - 1]}, and tomorrow will be {DAYS[(day + 1) % 7]}.",
            "There are seven days in a week: " + ", ".join(DAYS[:6]) + " and Sunday. "
            + rng.choice(["Saturday and Sunday are the weekend.", "Most children go to school from Monday to Friday."]),
            "The months of the year are " + ", ".join(MONTHS[:11]) + " and December.",
            f"In {season}, {about}. In the north, {season} is in {months}. After {season} comes {following}.",
            f"{season.capitalize()} is a season of the year. In {season}, {about}. After that comes {following}.",
            "The planets of the sun are " + ", ".join(PLANETS[:7]) + " and Neptune. "
            + rng.choice(["Jupiter is the largest of them.", "We live on the Earth.", "Saturn has wide rings."]),
        ]
    )  # fmt: skip


def knowledge(scene):
    """A paragraph of statements."""
    rng = scene.rng
    kind = rng.choice([country_facts, country_facts, animal_facts, calendar_facts, None])
    if kind:
        return "\n".join(kind(scene) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    pairs = [rng.choice([capital, animal, calendar, common_knowledge])(rng) for _ in range(rng.randint(2, 6))]
    return " ".join(answer for _, answer in pairs)


def sums(scene):
    """Lines of sums, or counting."""
    rng = scene.rng
    kind = rng.randrange(4)
    if kind == 0:
        return "\n".join(f"{a} + {b} = {a + b}" for a, b in pairs_of_numbers(rng))
    if kind == 1:
        return "\n".join(f"{a + b} - {b} = {a}" for a, b in pairs_of_numbers(rng))
    if kind == 2:
        n = rng.randint(1, 10)
        return f"The table of {n}:\n" + "\n".join(f"{i} x {n} = {i * n}" for i in range(1, 11))
    start = rng.randint(1, 20)
    step = rng.choice((1, 1, 1, 2, 5, 10))
    words = ", ".join(NUMBERS[1:11]) if rng.random() < 0.3 else ", ".join(str(start + i * step) for i in range(12))
    return f"{rng.choice(['Let us count', 'Counting', 'Count with me'])}: {words}."


def pairs_of_numbers(rng):
    return [(rng.randint(0, 20), rng.randint(0, 20)) for _ in range(rng.randint(4, 12))]
