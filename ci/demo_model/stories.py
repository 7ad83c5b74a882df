"""Short stories: a cast, an opening, one of the plots, an ending. Every plot has a cause, a try and a result."""

import lexicon
from grammar import Person, Thing

OPENINGS = [
    "once upon a time{, there was| there lived} a <trait_a> <A.kind> named <A>. <A.he> lived in <home>.",
    "once upon a time, in <home>, there lived a <trait_a> <A.kind> called <A>.",
    "there once was a <A.kind> named <A> who was very <trait_a>. <A.he> lived in <home>.",
    "<A> was a <trait_a> <A.kind> who lived in <home>.",
    "{long ago|many years ago|a long time ago}, a <A.kind> named <A> lived in <home>. <A.he> was <trait_a>{| and <trait_b>}.",
    "in <home> lived a <A.kind> {named|called} <A>. everyone {said|knew} that <A.he> was {very|quite} <trait_a>.",
    "it was a {dark and stormy|cold and windy|quiet|dark|warm} {night|evening}{, and| when} <A> the <A.kind> {sat by the fire|could not sleep|looked out of the window}. <A.he> lived in <home>{ and was very <trait_a>|}.",
    "{one|on a} {cold|warm|rainy|sunny|quiet} {winter|spring|summer|autumn} {night|evening|morning|day}, a <trait_a> <A.kind> named <A> {sat near <spot2>|came home late|walked slowly past <spot2>|woke up and looked around}. <A.he> lived in <home>.",
    "{the|a} {little|young|old|<trait_a>} <A.kind> {opened the door and {looked out|went outside|smiled}|walked along the road|stood near <spot2>|sat by the window}. {\"Good morning, world!\" said <A.the>.|<A.his> name was <A>, and <A.he> lived in <home>.|Everyone called <A.him> <A>.}",
    "this is the story of <A>, a <trait_a> <A.kind> from <home>.",
    "<A> the <A.kind> lived in <home>{ with <A.his> friend <B>|}. <A.he> was <trait_a>{, but <A.he> had a good heart|}.",
]

# Each plot is a list of paragraphs, each paragraph a list of templates.
PLOTS = {
    "lost": [
        [
            "<A> had {a <thing>|a <thing> that <A.he> loved more than anything}. {It was a gift from <A.his> {grandmother|"
            "grandfather|mother|father|aunt|uncle}.|<A.he> took it everywhere.|<A.he> had found it {at the market|on the beach|in the attic}.}",
            "<morning>, <A> could not find <thing.the>. {It was gone!|<A.he> looked again, but it was not there.|\"Where is my <thing.noun>?\" <A.he> <asked>.}",
        ],
        [
            "<A> <lookfor> <hide1>. {It was not there.|There was only dust.|<A.he> found an old <object>, but no <thing.noun>.} "
            "then <A.he> <lookfor> <hide2>. {Nothing.|It was not there either.|Still no <thing.noun>.}",
            "<A> {sat down and {cried|sighed}|was <sad>|felt <sad>}. \"{I will never find it.|I have looked everywhere!|What shall I do?}\" <A.he> said.",
            "{just then|at that moment|after a while}, <B> {came by|knocked at the door|walked past}. \"{What is wrong|Why are you so sad|What happened}?\" <asked> <B>.",
            "\"I lost my <thing.noun>,\" <said> <A>. \"{Let us look together|I will help you|Do not worry, we will find it},\" said <B>.",
        ],
        [
            "{first|so} they {thought about|talked about|remembered} {where <A> had been|everything <A> had done} the day before. "
            "\"{You were at <spot>|We went to <spot>},\" said <B>. {\"Maybe you left it there.\"|\"Let us go and see.\"}",
            "they <walked> to <spot>. {And there it was!|There, {under a leaf|beside a stone|on a bench|behind a bush}, was <thing.the>.|At last <B> called, \"Here it is!\"}",
            "<A> was <happy>. <thanks>",
            "{From then on, <A> always put <thing.the> in the same place.|<A> learned that two pairs of eyes see more than one.|<A> learned to {ask for help|take better care of <A.his> things}.}",
        ],
    ],
    "storm": [
        [
            "{one night|one evening|one autumn night}, a {great|terrible|big} storm came. {The wind {howled|blew hard} and the rain {beat against the windows|fell all night}.|Thunder shook the walls.}",
            "in the morning, <A> {went outside|opened the door|looked out of the window}. the storm had {broken|destroyed|damaged} <broken>. {\"Oh no!\" cried <A>.|<A> was <sad>.|Nobody knew what to do.}",
        ],
        [
            "\"We must {fix|repair|rebuild} it,\" said <A>. \"{But that is too much work for one!|But how?|It will take a whole year.}\" said <B>.",
            "<A> {thought for a moment|had an idea|looked around}. \"{Not if everyone helps|We will do it together|Many hands make light work},\" <A.he> <said>.",
            "so <A> <walked> from house to house and asked for help. {The baker brought <food>.|The carpenter brought {wood|nails|a hammer}.|The children carried {stones|small pieces of wood}.} {An old man brought {a rope|his tools}.|Some brought tools, and some brought food.}",
            "they worked {all day|for three days|until the sun went down|from morning to night}. {It was hard work, but nobody complained.|They sang while they worked.|When they were tired, they rested and ate <food>.}",
        ],
        [
            "{at last|finally|in the end}, the work was done. <broken> {was {stronger|better|more beautiful} than before|looked as good as new}.",
            "everyone {cheered|clapped|was proud}. \"{We did it|See what we can do together|No storm can beat us}!\" said <A>.",
        ],
    ],
    "newcomer": [
        [
            "<A> had just moved to {the town|a new place|the village} and did not know anyone. <A.he> felt {lonely|shy|a little sad}.",
            "{every day|in the afternoon}, <A> {sat alone {by the window|near <spot>}|watched the others play|walked alone to <spot>}. \"{I wish I had a friend},\" <A.he> {thought|said to <A.himself>|sighed}.",
        ],
        [
            "<morning>, <A> saw <B>, a <trait> <B.kind>, near <spot>. <B> {was trying to {fly a kite|carry a heavy bag|build a small boat|reach an apple}|had dropped a basket of {apples|eggs|berries|books}}, but {it was too hard alone|it was not going well|nobody was helping <B.him>}.",
            "<A> was <afraid>, but <A.he> {took a deep breath and|gathered all <A.his> courage and|} walked over. \"{Can I help you|May I help|Do you need a hand}?\" <A.he> <asked>.",
            "\"{Oh, yes, please|That would be wonderful|Thank you}!\" said <B>. {Together, they finished quickly.|With two, it was easy.|Soon the work was done.}",
            "\"{What is your name|I have not seen you before. Who are you}?\" <asked> <B>. \"My name is <A>,\" <said> <A>. \"I am new here.\" \"{Then you need a friend|Welcome|I am <B>},\" said <B>{ with a smile|}. \"{Come, I will show you everything|Let us have <food> together|Would you like to play with me}{.|!}\"",
        ],
        [
            "<later>, <B> showed <A> {<spot> and <spot2>|all the best places|<spot>, where the others were playing}. <A> {met|made} {many|three|new} friends{| that day}.",
            "<A> was not lonely anymore. {<A.he> learned that a small kindness can start a great friendship.|Sometimes you only have to say hello.|Being brave for one minute had changed everything.}",
        ],
    ],
    "courage": [
        [
            "<A> was afraid of <fear>. {<A.he> did not tell anyone about it.|The others sometimes laughed at <A.him>.|Even thinking about it made <A.his> knees shake.}",
            "\"{I am not brave,|What if something bad happens?|I will never be brave,}\" <A> {told <B>|thought|said}. \"{Being brave does not mean that you are never afraid|Everyone is afraid of something|Courage is like a seed. It grows slowly},\" <said> <B>.",
        ],
        [
            "<morning>, <A> heard {a cry|a small voice|someone calling}. \"Help! {Please help me|Is anyone there}!\" {It came from <spot>.|It was <B>!|The voice sounded far away.}",
            "<B> was {stuck|in trouble|all alone}, and {nobody else was near|there was no time to call for help|only <A> could hear <B.him>}. but to get there, <A> had to face <fear>.",
            "<A.his> heart beat fast. {\"I am afraid,\" <A.he> said, \"but <B> needs me.\"|<A.he> wanted to run away, but <A.he> thought of <B>.|<A.he> closed <A.his> eyes and counted to three.} then <A.he> {took one step, and another|went on, one step at a time|did not stop}.",
            "at last <A> reached <B> and {took <B.his> hand|helped <B.him> out|pulled <B.him> to safety}. \"{You came|You saved me|You did it}!\" said <B>.",
        ],
        [
            "\"{I thought you were afraid|Were you not afraid}?\" <asked> <B>. \"{I was|I still am a little},\" said <A>, \"but {you were more important|I went anyway|a friend is worth it}.\"",
            "{From then on, <fear> did not seem so terrible.|That day, <A> learned that {<A.he> was braver than <A.he> had thought|courage means to be afraid and still do what is right}.|After that, nobody laughed at <A> anymore.}",
        ],
    ],
    "honest": [
        [
            "<morning>, <A> was playing {in the house|with a ball|too wildly} when {suddenly there was a crash|something fell to the floor|<A.he> bumped into the table}. <thing.the> of <B> {was broken|lay on the floor in two pieces|had a big crack}!",
            "{<A> did not know what to do.|<A>'s face turned red.|<A> looked around. Nobody had seen it.} <A.he> {hid the pieces {under the bed|in a drawer|behind the door}|ran away and said nothing|put it back and hoped that nobody would see}.",
        ],
        [
            "<later>, <B> {came home|came into the room|found it}. \"{Who broke my <thing.noun>|What happened to my <thing.noun>}?\" <asked> <B>. {\"I do not know,\" said <A> in a small voice.|\"Maybe it was the {cat|wind},\" said <A>.|<A> said nothing.}",
            "that night, <A> could not sleep. {<A.his> stomach hurt.|The lie felt like a heavy stone.|<A.he> thought about <B>'s sad face.} {\"I must tell the truth,\" <A.he> thought.|In the morning, <A.he> made a decision.}",
            "<A> went to <B>. \"{It was me|I broke it},\" <A.he> said. \"I am {so|very} sorry{|. I was afraid to tell you}.\"",
        ],
        [
            "<B> was quiet for a moment. \"{I am sad about my <thing.noun>|It was an old <thing.noun>|Things can break}, but {I am glad you told me the truth|it takes courage to be honest|a friend who tells the truth is worth more}.\"",
            "together they {glued the pieces|repaired <thing.the>|made a new one}. {It was not perfect, but it was even more special.|It took the whole afternoon.} <A> {felt light again|felt much better|slept well that night}.",
        ],
    ],
    "contest": [
        [
            "every {year|spring|summer|autumn}, there was a great <contest> {in town|near <spot>|at the fair}. the winner got {a golden cup|a basket of {apples|sweets}|a <thing>}. <A> wanted to win {more than anything|this year|very much}.",
            "<A> practiced {every day|from morning to night|for weeks}. {Sometimes it went well, and sometimes it did not.|At first it was difficult.|\"Practice makes perfect,\" said <B>.} {<A.he> made mistakes, but <A.he> did not give up.|}",
        ],
        [
            "at last the {big|great} day came. {Everybody was there.|People came from far away.|Flags waved in the wind.} <A> was <afraid>, but <B> said, \"{Just do your best|I believe in you|Have fun, that is what matters}.\"",
            "the <contest> began. <A> {was doing very well|was in front|had never done better}. then <A.he> saw {that <B> had fallen|a child crying|an old woman who needed help|that another {boy|girl} was hurt}. {<A> had to choose.|If <A.he> stopped, <A.he> would lose.|Everyone else just went on.}",
            "<A> stopped {at once|without thinking|} and went to help. {\"Go on, you will lose!\" someone shouted.|The others went past.} \"{Some things are more important than winning},\" <said> <A>.",
        ],
        [
            "<A> {came last|did not win the cup|finished long after the others}. but {everyone clapped the loudest for <A.him>|the judge smiled and gave <A.him> a special prize for kindness|the crowd called <A.his> name}.",
            "\"{You are the real winner|I am proud of you|I would choose a kind heart over a golden cup},\" said <B>. <smile>",
        ],
    ],
    "rescue": [
        [
            "<morning>, <A> {was walking to <spot>|was on the way home|went out to play} when <A.he> heard a {soft|strange|tiny|sad} sound. {\"What is that?\" <A.he> said.|<A.he> stopped and listened.|It came from the {grass|bushes}.}",
            "it was a {little|young|small|baby} <creature> {with a hurt {wing|leg|foot}|that had lost its mother|caught in a net|shaking from the cold}. {\"You poor thing,\" said <A>.|It looked at <A> with big eyes.|It could not move.}",
        ],
        [
            "<A> {carried it home {in <A.his> coat|in a basket|very carefully}|wrapped it in a {warm|soft} {scarf|blanket}}. <A.he> gave it {water and {bread|seeds|milk}|something to eat and a warm place to sleep}.",
            "\"{Will it be all right|What should we do now}?\" <A> asked <B>. \"{It needs time and rest|We must be patient|Keep it warm and quiet},\" <said> <B>.",
            "day after day, <A> took care of the little <creature>. {Slowly|Little by little}, it {grew stronger|got better|began to {eat|play|hop around}}. {<A> named it {Pip|Lucky|Hope|Sunny}.|They became friends.|}",
        ],
        [
            "one day, the <creature> was {well|strong} again. it {looked out of the window|stood by the door} and {made a small sound|waited}. \"{It wants to go home|It is time to say goodbye},\" said <B>.",
            "<A> was <sad>, but <A.he> {opened the door|took it back to <spot>|let it go}. {The <creature> looked back once and then disappeared {among the trees|into the sky|in the tall grass}.|\"Goodbye, little friend,\" <A.he> whispered.}",
            "{the next spring|some weeks later|every year after that}, the <creature> came back{ with {its family|three little ones}| to visit|}. <A> was <happy>. {It had not forgotten.|A kind deed is never lost.}",
        ],
    ],
    "seed": [
        [
            "<morning>, <B> gave <A> a {tiny|small|strange|round} seed. \"{Plant it and take care of it|Be patient, and you will see a wonder|It does not look like much},\" said <B>{ with a smile|}. \"{One day it will surprise you|Good things take time}.\"",
            "<A> {dug a small hole in the garden|filled a pot with earth} and put the seed into it. {<A.he> covered it with soft earth.|<A.he> gave it some water.} \"{Grow, little seed|Now grow}!\" <A.he> said.",
        ],
        [
            "the next day, <A> {ran|hurried} to look. nothing had happened. {The day after that, there was still nothing.|A whole week passed, and nothing happened.} \"{Maybe it is a bad seed,|Why does it not grow?|It will never grow,}\" said <A>.",
            "\"{Wait|Be patient},\" <said> <B>. so every {morning|day} <A> {watered it|gave it water} and {sang to it|pulled out the weeds|told it a story}. {The rain fell, and the sun shone.|The days grew longer.}",
            "then, <morning>, there was a tiny green leaf! <A> {shouted for joy|could not believe <A.his> eyes|called <B> at once}. {The plant grew {higher|taller} every day.|First it was as high as <A.his> knee, then as high as the {fence|door}.}",
        ],
        [
            "in summer, it had {a big <color> flower|the sweetest {apples|berries|plums}|a hundred <color> flowers}. {Bees came from everywhere.|Everyone stopped to look at it.|<A> shared the seeds with all the neighbors.}",
            "\"{You did it|See|Now you know}!\" said <B>. \"{Good things need time|Patience is the best gardener}.\" <smile>",
        ],
    ],
    "treasure": [
        [
            "<morning>, <A> found an old map {in a bottle|<hide1>|in a book|inside an old <object>}. {A red cross was drawn near <spot>.|On it was written: \"Follow the path to <spot>.\"} \"{A treasure map|Look at this, <B>|This must lead to a treasure}!\" said <A>.",
            "<A> and <B> packed {a rope, a lamp and some bread|<food> and a bottle of water|everything they needed} and {set off|left at once|began their journey}.",
        ],
        [
            "first they had to cross {a deep river|a dark forest|a wide field|a swamp}. {It was not easy, but they helped each other.|<B> almost fell, but <A> held <B.his> hand.|They found an old boat and rowed to the other side.}",
            "then they came to {a cave|a locked gate|a high wall|a bridge that was guarded by an old troll}. {\"Only those who {answer my question|know the secret} may pass,\" said a deep voice. \"What grows when you share it?\" <A> thought hard. \"{Friendship|Happiness|Love}!\" <A.he> said. \"That is right,\" said the voice.|They looked for a way in, and <A> found a small key under a stone.}",
            "at last they reached <spot>. {\"Here it is!\" cried <B>.|They began to dig.|They dug and dug until they hit something hard.} it was {a wooden chest|an iron box|an old chest}.",
        ],
        [
            "<A> opened it {slowly|with shaking hands}. inside was {no gold, only {an old book full of stories|a mirror and a letter}|a <thing> and a letter|{a pile of golden coins|a hundred shining coins}}. {the letter said: \"The real treasure is the friend who walked with you.\"|}",
            "<A> and <B> looked at each other and {laughed|smiled}. {\"I would go again tomorrow,\" said <B>.|They shared everything {with the whole village|fairly}.|It was the best treasure they could imagine.}",
        ],
    ],
    "sick": [
        [
            "{one winter|one cold day|<morning>}, <A>'s {grandmother|grandfather|mother|father|friend <B>} {became|was} ill. {The doctor came and shook <doctor.his> head.|There was a fever that would not go away.} \"{Only the {silver|blue|golden} flower from <spot> can help|We need a special herb that grows near <spot>},\" said the doctor.",
            "\"{I will find it|I will go},\" said <A>. {It was far, and the road was dangerous.|Snow covered the path.|<A.he> put on a warm coat and took a lantern.}",
        ],
        [
            "<travel>",
            "on the way, <A> met a {hungry|tired|cold} <creature>. {<A> had only a little bread, but <A.he> gave half of it away.|<A> put <A.his> scarf around it.|\"You need this more than I do,\" said <A> and shared <A.his> food.} \"{Thank you|You are kind},\" said the <creature>. \"{I will not forget it|If you are in trouble, call me}.\"",
            "when <A> came to <spot>, {it was already dark|a thick fog came|the path ended}. {<A.he> could not see the flower anywhere.|<A.he> was lost.} then <A.he> remembered the <creature> and called. it came {at once|out of the dark} and {showed <A.him> the way|led <A.him> to the flower}.",
        ],
        [
            "<A> {hurried|ran} home with the flower, and the doctor made {a tea|medicine} from it. {In the morning|After three days}, the fever was gone. \"{You are my hero|You were so brave},\" {was the first thing <A> heard|said a soft voice}.",
            "{<A> smiled. \"I had help,\" <A.he> said.|<A> told the whole story, and everyone listened.|Kindness had found its way back.}",
        ],
    ],
    "wish": [
        [
            "<morning>, <A> found {an old lamp|a strange <color> stone|a golden ring|a tiny bottle} near <spot>. {When <A.he> rubbed it, there was a puff of smoke.|It began to glow.} \"{I will give you three wishes|You have three wishes},\" said a {deep|tiny|friendly} voice. \"{Choose well|Think carefully}.\"",
        ],
        [
            "\"I wish for {a mountain of <food>|all the <food> in the world},\" said <A> at once. {Whoosh!|In a flash,} there was <food> {everywhere|up to the roof}. <A> ate and ate until {<A.his> stomach hurt|<A.he> could not move}.",
            "\"I wish {that I could fly|that I were as tall as a tree|that everything I touch turned to {gold|chocolate}|to be the richest <A.kind> in the world},\" was the second wish. {At first it was fun, but soon it was not.|But <A> was alone with it, and nobody could {play with|talk to} <A.him>.|It was not at all as <A.he> had imagined.}",
            "<B> came and looked at everything. \"{Are you happy now|What will you do|Is this what you wanted}?\" <B.he> asked. <A> {shook <A.his> head|sighed|thought about it for a long time}.",
        ],
        [
            "\"My last wish,\" said <A>, \"is that everything is as it was before.\" {There was a flash, and|At once} {all was normal again|the magic was gone}.",
            "<A> and <B> {sat down and shared {a piece of bread|an apple}|went to play by <spot>|laughed until they cried}. {\"That tastes better than any wish,\" said <A>.|<A> had everything <A.he> needed.|<A> never looked for magic again.}",
        ],
    ],
    "outcast": [
        [
            "everyone {in the village|in the town} was afraid of <C>, a {big|huge|strange} <C.kind> who lived {near <spot>|on the mountain|all alone}. {People said terrible things about <C.him>.|\"Never go there,\" they told the children.} but <C> was not bad. <C.he> was only {lonely|different|very shy}.",
            "<A> was curious. <morning>, <A.he> {went to see <C>|walked to <spot> and saw <C> {reading a book|watering flowers|singing softly}}. {<A> was <afraid>, but <A.he> said hello.|\"Hello,\" said <A>. \"Do not be afraid of me,\" said <C> softly.} {They drank tea together and talked for hours.|They became secret friends.}",
        ],
        [
            "{one night|one day}, {a fire broke out in the village|the river rose higher and higher|a little {girl|boy} was lost in the snow|a giant rock blocked the only road}. {Nobody knew what to do.|Everyone ran and shouted.} \"{I know who can help|We must ask <C>},\" cried <A>. the people did not want to, but {there was no other way|<A> had already gone}.",
            "<C> came {at once|as fast as <C.he> could}. {with <C.his> great strength|with all <C.his> courage|without fear}, <C> {saved them all|saved the village|did what nobody else could do}.",
        ],
        [
            "the people were {ashamed|silent}. \"{We were wrong about you|Please forgive us|We never took the time to know you},\" said {the mayor|the oldest woman|the baker}. <C> {smiled|blushed} and said, \"{I only wanted to have friends|It is never too late to begin again}.\"",
            "{after that, <C> was invited to every party|they gave a great feast with <food> for <C>|the children visited <C> every day}, and <A> {was very proud of <A.his> friend|sat beside <C.him>}.",
        ],
    ],
    "quarrel": [
        [
            "<A> and <B> were {good|best} friends, but {one day|<morning>} they {had a quarrel|began to argue}. both wanted {the <thing>|to play with the <thing>}. \"{It is mine|I saw it first|Give it to me}!\" said <A>. \"No, {it is mine|I want it|I had it first}!\" said <B>.",
            "they pulled and pulled until {it broke|it fell into the water|they both fell down}. {\"Now look what you did!\" shouted <B>.|\"I never want to see you again!\" cried <A>.} they went home {without a word|angry}.",
        ],
        [
            "{the next day|that evening}, <A> {sat alone|tried to play alone}. {It was not fun at all.|Everything was boring without <B>.} <A.he> thought, \"{What is a <thing.noun> without a friend?|I was not fair to <B>.|I miss <B>.}\"",
            "at the same time, <B> was thinking {the same|of <A>}. so they both {got up and went out|set off}, and they met {halfway|in the middle of the road|near <spot>}. \"I am sorry,\" they said at the same {time|moment}. then they {laughed|hugged}.",
        ],
        [
            "{together they {repaired|fixed} <thing.the>|they decided to take turns|they made a second one}, and {from then on they shared everything|there was enough for both}.",
        ],
    ],
    "lighthouse": [
        [
            "<A> {kept|took care of} the lighthouse near {the harbor|the rocks|the cliffs}. every {evening|night}, <A.he> {climbed the {long|winding} stairs and|} lit the great lamp so that the ships could find their way{ home|}.",
            "{one stormy night|one dark night}, the lamp went out. {The oil was gone.|The wind had broken the glass.|It would not burn again.} {far out on the sea|out in the dark}, <A> saw a {small|tiny} light. \"{A ship|A boat}! It will hit the rocks!\" <A.he> cried.",
        ],
        [
            "<A> ran to <B>. \"{Wake up|Quick}! We need {light|a fire|every lantern in the village}!\" <B> {understood at once|rang the bell}, and soon {everyone came with {lanterns|candles|torches}|the whole village was awake}.",
            "they stood on the {cliff|beach} in a long line and held up their lights. {It looked like a string of stars.|The rain fell, but nobody went home.} out on the sea, the {ship|boat} {slowly turned|changed its course} {and sailed safely into the harbor|away from the rocks}.",
        ],
        [
            "{the captain came ashore|in the morning, the captain came} and {shook <A>'s hand|bowed to everyone}. \"{One lamp went out, and a hundred were lit|You saved our lives},\" said the captain.",
            "after that, {there was always enough oil in the lighthouse|the people met every year on that night and lit their lanterns}.",
        ],
    ],
    "mystery": [
        [
            "something strange was happening in <home>. every {night|morning}, some <stolen> {disappeared|was gone|was missing}. {\"Who is the thief?\" everyone asked.|\"It was not me,\" said <B>.|Nobody had seen anything.}",
            "<A> decided to {find out|solve the mystery}. <A.he> {looked for tracks|wrote everything in a notebook|asked everyone questions}. {There were small footprints on the floor.|There was a trail of crumbs.|<A.he> found a single {feather|hair|button}.}",
        ],
        [
            "that night, <A> and <B> {hid <hide1>|stayed awake|hid and waited}. {The clock struck ten, then eleven, then twelve.|It was very quiet.|<B> almost fell asleep.} then they heard {a soft sound|something: tap, tap, tap|a tiny noise}.",
            "\"{Shh|Look},\" whispered <A>. {a small shadow|something small} moved across the floor. <A> lit {a candle|the lantern}. it was a {little|tiny|thin} <creature>!",
            "{\"Please do not be angry,\" it said. \"My children are hungry.\"|It was not a thief at all. It had {four|five|three} hungry little ones <hide2>.|It looked so hungry that nobody could be angry.}",
        ],
        [
            "{\"You only had to ask,\" said <A>.|\"We have enough for everyone,\" said <B>.} from then on, {they put out a small plate every evening|<A> left some <stolen> by the door each night}, and {nothing was ever stolen again|the mystery was solved}.",
        ],
    ],
    "skill": [
        [
            "<A> wanted to learn to <skill>. {<A.he> had seen <B> do it, and it looked so easy.|<A.he> had dreamed of it for a long time.|\"How hard can it be?\" <A.he> thought.}",
            "{but the first time|on the first day}, {it went wrong|everything went wrong|<A> failed}. {The others laughed.|<A.he> felt foolish.} \"{I give up|I cannot do it|I am no good at this},\" said <A>.",
        ],
        [
            "<B> {sat down beside <A.him>|shook <B.his> head}. \"{I failed many times, too|Nobody can do it the first time|I fell a hundred times before I could do it}.\" said <B>. \"{Try again tomorrow|Take one small step each day|Do not say you cannot do it. Say you cannot do it yet}.\"",
            "so <A> tried again. {The second time was a little better.|On Tuesday it was a bit better, and on Wednesday better still.} {<B> helped and showed <A.him> how.|<A.he> practiced near <spot> every day.|Some days were bad, but <A.he> kept going.}",
        ],
        [
            "and then, <morning>, it {worked|happened}! <A> could <skill>! {\"Look! Look at me!\" <A.he> shouted.|<A.he> could hardly believe it.} <B> {clapped|cheered} {loudly|} and said, \"{I knew it|I told you so|Well done}!\"",
            "{a year later|some time later}, <A> saw a small child who {was trying to learn it|failed and cried}. <A> sat down and said, \"{Do you know how many times I failed?|Let me tell you a secret. Nobody can do it the first time.}\"",
        ],
    ],
    "river": [
        [
            "{one summer|one year}, the river {near <spot>|in the valley} {dried up|stopped flowing}. {The fields turned brown.|The animals were thirsty.|There was no water for the mill.} {\"What has happened to our river?\" people asked.|Nobody knew why.}",
            "\"{I will follow the river up to the mountains|Someone must find out why|I will go and see},\" said <A>. <B> {went with <A.him>|did not want <A.him> to go alone}. they took {some bread and|} a bottle of water and {set off|left early}.",
        ],
        [
            "<travel>",
            "on the {second|third} day, they {heard water|came to a big lake that had not been there before|saw what had happened}. {a family of beavers had built a dam|a great rock had fallen into the river|a giant had built a wall to make himself a bath}.",
            "{\"We did not know,\" said the oldest one there. \"We only wanted a home.\"|They thought about it for a long time.} \"{Perhaps we can find a way that is good for everyone|There is enough water for all of us},\" <said> <A>. {so they made a small gate, and|together they moved the stones, and|they dug a second stream, and} soon the water {flowed|ran down} {again|into the valley again}.",
        ],
        [
            "when <A> and <B> came home, {the river was there before them|children were already swimming in the river|the mill was turning}. {everyone {cheered|thanked them}|there was a great feast}, and {the fields were green again|nobody was thirsty anymore}.",
        ],
    ],
    "snow": [
        [
            "{one winter morning|in December|one day in January}, <A> woke up, and everything was white. \"{Snow|It is snowing}!\" <A.he> shouted. <A.he> put on {a warm coat|<A.his> boots}, a <color> {hat|scarf} and {gloves|thick socks} and ran outside.",
            "<B> was already there. \"{Let us build a snowman|Let us make the biggest snowman in the world},\" said <B>. they {rolled|made} three big balls of snow. {They used {stones|buttons|coal} for the eyes and a carrot for the nose.|<A> gave him <A.his> own hat.}",
        ],
        [
            "\"{He looks lonely|He looks cold},\" said <A>. so they {built a second one|gave him a scarf|stayed with him until dark}. {then they had a snowball fight|then they went down the hill on a sled|they made angels in the snow} until their {noses were red|fingers were cold}.",
            "inside, there was {hot chocolate|warm soup|tea with honey} {by the fire|}. {They looked out of the window at the snowman. It almost seemed that he {winked|smiled} at them.|\"I wish it could be winter forever,\" said <B>.}",
        ],
        [
            "{a week later|some days later|in spring}, the sun {came out|grew warm}, and the snowman {became smaller and smaller|melted}. {<A> was <sad>. \"Do not be sad,\" said <B>. \"He will come back next winter.\"|Only the hat and the carrot were left. <A> kept the hat for next year.}",
        ],
    ],
    "letter": [
        [
            "<morning>, a letter came to the house of <A>. but the name on it was not <A.his> own. {It was for {an old man|an old woman} near <spot>.|\"To my dear friend near <spot>,\" it said.} \"{It must be a mistake|Somebody is waiting for this},\" said <A>.",
            "{<A> could have thrown it away, but <A.he> did not.|\"I will bring it myself,\" <A.he> said.} {It was raining, but <A.he> put the letter under <A.his> coat and went out.|It was a long way, but <A.he> did not mind.}",
        ],
        [
            "<travel>",
            "when <A> knocked at the door, <B> opened it. <B.he> {was a <B.kind>|lived there all alone|looked tired}. \"A letter? {Nobody has written to me for years|For me},\" said <B>. <B.his> hands shook as <B.he> read it. {then tears came to <B.his> eyes|then <B.he> smiled}. \"It is from my {brother|sister|old friend}. {I thought I would never get an answer|It was lost for ten years}.\"" ,
        ],
        [
            "<B> {made tea|gave <A> a piece of cake} and told <A> {the whole story|about the old days}. {it was dark when <A> went home|<A> stayed until evening}. \"{Come again|Come back soon},\" said <B>, and <A> did — {every Sunday|the next week, and the week after that}.",
        ],
    ],
}  # fmt: skip

FEARS = ["the dark", "deep water", "high places", "thunder", "the big dog next door", "spiders", "the old tower", "the dark forest", "the sea"]  # fmt: skip
SKILLS = ["swim", "ride a bicycle", "play the flute", "play the violin", "dance", "bake bread", "sing", "skate", "juggle", "draw horses", "sail a boat", "whistle", "climb", "read"]  # fmt: skip
CONTESTS = ["race", "boat race", "baking contest", "singing contest", "running race", "drawing contest", "kite contest", "swimming race"]
BROKEN = ["the old bridge", "the roof of the school", "the windmill", "the bakery", "the big barn", "the fence around the garden", "the little boat", "the library"]  # fmt: skip
CREATURES = ["bird", "rabbit", "squirrel", "fox", "mouse", "kitten", "puppy", "duckling", "hedgehog", "owl", "turtle", "lamb", "deer"]
STOLEN = ["bread", "cheese", "cake", "honey", "milk", "jam", "corn"]
TITLES = ["The <TraitA> <KindA>", "<A> and <B>", "<A> and the <Noun>", "A Story About <A>", "<A>'s Big Day", "<A> of <Spot>", "How <A> Found a Friend"]


def cast(scene):
    """Binds A (hero), B (friend), C (outcast) with different names."""
    rng = scene.rng
    names = set()
    for letter in "ABC":
        gender = rng.choice("mf")
        group = rng.choice(("child", "child", "grown", "animal", "animal", "fantasy"))
        if letter == "C":
            group = "fantasy"
        person = make_person(rng, gender, group)
        while person.name in names:
            person = make_person(rng, gender, group)
        names.add(person.name)
        scene.bind(**{letter: person})


def make_person(rng, gender, group):
    names = lexicon.GIRLS if gender == "f" else lexicon.BOYS
    kinds = {
        "child": ["girl"] if gender == "f" else ["boy"],
        "grown": lexicon.GROWN,
        "animal": lexicon.ANIMALS,
        "fantasy": [k for k in lexicon.FANTASY if not (gender == "m" and k in ("mermaid", "fairy"))],
    }[group]
    if group == "animal" and rng.random() < 0.5:
        names = lexicon.PET_NAMES
    return Person(rng.choice(names), gender, rng.choice(kinds))


def set_stage(scene):
    """Binds the places and things that a plot names more than once."""
    rng = scene.rng
    spots = rng.sample(lexicon.PLACES, 2)
    hides = rng.sample(lexicon.INSIDE, 2)
    traits = rng.sample(lexicon.TRAITS, 2)
    adjective = rng.choice(lexicon.COLORS + lexicon.SIZES + [""])
    scene.bind(
        spot=spots[0],
        spot2=spots[1],
        hide1=hides[0],
        hide2=hides[1],
        thing=Thing(rng.choice(lexicon.OBJECTS), adjective),
        fear=rng.choice(FEARS),
        skill=rng.choice(SKILLS),
        contest=rng.choice(CONTESTS),
        broken=rng.choice(BROKEN),
        creature=rng.choice(CREATURES),
        stolen=rng.choice(STOLEN),
        trait_a=traits[0],
        trait_b=traits[1],
        doctor=Person("doctor", rng.choice("mf"), "doctor"),
    )
    scene.pick("home")


def story(scene, plot=None):
    """One story of about 150 to 400 words."""
    cast(scene)
    set_stage(scene)
    name = plot or scene.rng.choice(list(PLOTS))
    alone = name in ("newcomer", "letter", "sick")  # B must not be known yet, or may never come in

    def one_of(templates):
        return scene.rng.choice([t for t in templates if not (alone and "<B" in t)])

    opening = [one_of(OPENINGS)]
    if scene.rng.random() < 0.5:
        opening.append(one_of(lexicon.RULES["detail"]))
    opening.append(scene.maybe(0.3, "<weather>"))
    middle = [list(group) for group in PLOTS[name]]
    if scene.rng.random() < 0.25:
        middle[1].insert(0, "<weather>")
    ending = [one_of(lexicon.RULES["end"])] if scene.rng.random() < 0.85 else []
    if scene.rng.random() < 0.5:
        middle[-1] += ending
        ending = []
    return scene.paragraphs(opening, *middle, ending)


def part_of_story(scene):
    """A story from somewhere in its middle on, so that any sentence may be a beginning."""
    sentences = story(scene).split(". ")
    return ". ".join(sentences[scene.rng.randrange(1, max(2, len(sentences) // 2)) :])


def titled_story(scene):
    text = story(scene)
    hero = scene.bound["A"]
    scene.bind(
        TraitA=str(scene.bound["trait_a"]).title(),
        KindA=hero.kind.title(),
        Noun=scene.bound["thing"].noun.title(),
        Spot=scene.bound["spot"].title(),
    )
    return scene.expand(scene.rng.choice(TITLES)) + "\n\n" + text


def requested_story(scene):
    """A story in answer to a request, which names its hero or its object."""
    with_thing = scene.rng.random() < 0.3
    text = story(scene, scene.rng.choice(("lost", "quarrel", "honest")) if with_thing else None)
    about = "a <A.kind> and <thing.a>" if with_thing else "{a <A.kind>|a <A.kind> named <A>|a <trait_a> <A.kind>|<A> and <B>|<A> the <A.kind>}"
    user = scene.say(
        "{{Tell me|Write|Please tell me|Please write} a {story|short story} about " + about + "{.|.|!|}"
        "|Can you tell me a {story|short story} about " + about + "?}"
    )
    return scene.rng.choice([f"User: {user}\nAssistant: {text}", f"Question: {user}\nAnswer: {text}"])
