"""Wordings for training texts of the extraction tasks, besides the tasks' own templates."""

from __future__ import annotations

PHRASES: dict[str, tuple[str, ...]] = {
    "name": (
        "the name is {}", "we are talking about {}", "{} is the person", "it is {} this is about", "by {}", "with {}",
        "for {}", "a certain {}", "contact: {}", "person: {}", "{} takes part", "ask {} for more", "called {}",
        "{}, as you know", "it concerns {}",
    ),
    "age": ("{} years old", "aged {}", "the age is {}", "age {}", "{} years of age", "birthday number {}", "now {}"),
    "job": ("a {}", "works as a {}", "by trade a {}", "the job is {}", "profession: {}", "a trained {}", "the {} here"),
    "city": (
        "in {}", "from {}", "the city is {}", "the town of {}", "place: {}", "{} is the place", "where? {}",
        "out of {}", "near the centre of {}", "this is {}", "location {}", "somewhere in {}", "at home in {}",
    ),
    "company": (
        "at {}", "by {}", "from {}", "with {}", "the company is {}", "firm: {}", "{} is the firm", "thanks to {}",
        "on behalf of {}", "{} is in charge", "via {}", "business: {}", "the people of {}", "{} does the work",
    ),
    "hobby": (
        "likes {}", "in free time {}", "hobby: {}", "{} is the hobby", "a friend of {}", "dreams of {}", "practises {}",
        "on Sundays {}", "interested in {}", "cannot live without {}",
    ),
    "number": (
        "number {}", "no. {}", "the number is {}", "with number {}", "{} is its number", "reference {}",
        "filed under {}", "code {}", "marked {}",
    ),
    "date": (
        "on {}", "dated {}", "the date is {}", "day: {}", "{} is the day", "as of {}", "when? {}", "it was {}",
        "since {}", "calendar: {}", "set for {}",
    ),
    "total": (
        "{} dollars in total", "the total is {} dollars", "sum {} dollars", "{} dollars altogether",
        "to pay: {} dollars", "amount {} dollars", "a price of {} dollars for everything",
    ),
    "items": (
        "for {}", "items: {}", "it lists {}", "ordered: {}", "{} were bought", "goods: {}", "that is {}", "we got {}",
    ),
    "kind": ("a {}", "the {}", "kind: {}", "planned as a {}", "this {}", "come to the {}", "type of event: {}"),
    "topic": (
        "on {}", "about {}", "the topic is {}", "subject: {}", "all about {}", "{} is the topic", "it deals with {}",
        "devoted to {}", "for lovers of {}",
    ),
    "seats": (
        "{} seats", "room for {} guests", "{} places", "up to {} people", "seats: {}", "{} can come", "limited to {}",
        "chairs for {}",
    ),
    "product": ("{}", "goods: {}", "content: {}", "product {}", "it is {}", "filled with {}", "what? {}"),
    "quantity": ("{} pieces", "quantity {}", "{} of them", "count: {}", "{} units", "how many? {}"),
}  # fmt: skip
"""For every field of the extraction tasks, ways to say it that no template has word for word."""


TELLINGS: dict[frozenset[str], tuple[str, ...]] = {
    frozenset({"name", "age", "job", "city", "company", "hobby"}): (
        "[Let me introduce|May I present|This is] {name}, [a|our] {job} [of|aged] {age}. [Home is|The address is in] {city}, "
        "the [salary|pay] comes from {company} and [free days|holidays] are [kept|reserved] for {hobby}.",
        "{company} [employs|pays|relies on] {name}, [a {job} of {age}|a {age} year old {job}]. [People|Friends] in {city} "
        "[know|call] [this fan of {hobby}|someone so keen on {hobby}] well.",
        "[In|Around] {city} everybody [knows|likes] {name}, the {job} [of|from] {company}. [At {age}|Aged {age}|Now {age}], "
        "{name} still [adores|is crazy about|has time for] {hobby}.",
        "{hobby} is what {name} [does|enjoys] after [hours|work]. By day {name} is a {job} [for|with|at] {company}; the flat "
        "is in {city} and the [candles on the cake|years so far] number {age}.",
        "[Profile|Short profile|Portrait]: {name}, {age} years, {city}. [Job|Work]: {job}, {company}. [Likes|Loves|Interest]: "
        "{hobby}.",
        "My [neighbour|cousin|friend] {name} [is|has turned|will soon be] {age}. [A|As a] {job} by training, {name} "
        "[left {city} never|never left {city}|grew up in {city}], [serves|helps] {company} and [collects|reads] [all|everything] "
        "about {hobby}.",
        "The {job} whom {company} [sent|chose] is {name}, {age}. [When not working|On free evenings], {hobby} [matters|comes "
        "first]; the [train|way] home goes to {city}.",
        "[Who|Guess who] [turned|became] {age}? {name}! The [busy|friendly|young] {job} of {city} [has been|is] with {company} "
        "[for years|since spring] and [teaches|plays with] {hobby}.",
        "{name} [signed|got] a contract with {company}. [Position|Post]: {job}. [Residence|Town]: {city}. Age {age}. "
        "[Private passion|Private interest]: {hobby}.",
        "[As|Being] a {job}, {name} [earns|makes] a living at {company}. {name} [rents|owns] a house in {city}, [celebrated|had] "
        "birthday number {age} and [never misses|follows] {hobby}.",
        "[Only|Just] {age}, {name} already [leads|runs] a team at {company}. The {city} [born|based] {job} [relaxes|unwinds] "
        "with {hobby}.",
        "{city} [is|remains] the home of {name}. [With|At] {age} years, the {job} [divides|splits] the week between {company} "
        "and {hobby}.",
    ),
    frozenset({"number", "company", "date", "total", "items"}): (
        "[We|They] [sold|delivered|shipped] {items}. The [seller|vendor|firm] is {company}, the [invoice|bill] is {number}, "
        "[written|issued] on {date}, and {total} dollars [are open|must be paid].",
        "{company} [charges|asks|wants] {total} dollars [for|in exchange for] {items}; [number|invoice number] {number}, [day|"
        "date] {date}.",
        "[A|Another|One more] [invoice|bill] came in on {date}: {number}. {company} [lists|names|counts] {items}, [which makes|"
        "so that makes] {total} dollars.",
        "[Order|Purchase] of {date}: {items}. [Supplier|Shop]: {company}. [Receipt|Invoice] {number}, [altogether|all in all] "
        "{total} dollars.",
        "[Remember|Do not forget] invoice {number}! {company} [waits|is waiting] for {total} dollars since {date}, [because|as] we "
        "[took|bought|got] {items}.",
        "[Your|The] [order|purchase] at {company} [includes|has|contains] {items}. [Paper|Invoice] number {number}, {date}, "
        "[amounts|adds up] to {total} dollars.",
        "[On|As of] {date} the [account|ledger] shows invoice {number} by {company}: {items}, {total} dollars.",
        "[Number|Invoice] {number}. [Issued|Sent] {date}. [Vendor|From] {company}. [Sold|Goods]: {items}. [Grand total|In total] "
        "{total} dollars.",
        "{total} dollars [went|go|were sent] to {company} on {date}. [That|This] [paid|settled] invoice {number}, [namely|that is] "
        "{items}.",
        "[Thanks|Thank you] for [choosing|trusting] {company}. [You received|We packed] {items}. [Bill|Invoice] {number}, [made "
        "out|printed] on {date}: {total} dollars.",
        "[Dated|From] {date}, [the bill|the invoice] with [reference|the number] {number} [asks for|names] {total} dollars. {company} "
        "[supplied|provided] {items}.",
        "[Have you|Did you] [paid|pay] {company}? [It is|We talk about] {items}, {total} dollars, [document|invoice] {number}, "
        "{date}.",
    ),
    frozenset({"kind", "topic", "city", "date", "name", "seats"}): (
        "[Come|Travel|Go] to {city} [on|for] {date}: {name} [hosts|opens|offers] a {kind} [about|on|around] {topic} [with|for] "
        "{seats} [guests|visitors|seats].",
        "[Tickets|Places] for the {city} {kind} are [on sale|going fast]. {seats} [were printed|exist]; {name} [talks|speaks] [on|"
        "about] {topic} on {date}.",
        "[Announcement|News|Notice]: {kind}, {topic}, {date}. [Venue|Where]: {city}. [Led by|With] {name}. [Capacity|Room for] "
        "{seats}.",
        "{name} [will be|is] in {city} on {date}. [Expect|There will be] a {kind} [devoted to|full of] {topic}; the [hall|room] "
        "[holds|takes|has] {seats}.",
        "{topic} [lovers|fans], [listen|attention]! [The|A] {kind} you [wanted|asked for] [comes|is coming] to {city}: {date}, {seats} "
        "[chairs|tickets], [presented|run] by {name}.",
        "[Because of|After] [great|large] demand {name} [repeats|gives again] the {kind} [on|about] {topic}. [New date|Next date]: {date}, "
        "{city}, {seats} [places|people].",
        "[This|The] {kind} [starts|begins] on {date}. {seats} [people|persons] [fit|find room] in the {city} [theatre|library]. "
        "{name} [explains|covers] {topic}.",
        "[Our|The] {city} [club|office] [plans|organises] a {kind}. [Subject|Theme]: {topic}. [Guest|Star]: {name}. {date}; "
        "[limited to|at most] {seats} [people|seats].",
        "[Would you like|Want] to [learn|hear] [more|something] about {topic}? {name} [invites|welcomes] {seats} [people|guests] to a "
        "{kind} in {city}, {date}.",
        "[Mark|Note] {date} in your calendar. [For|With] {seats} [listeners|participants], {name} [turns|brings] {topic} into a {kind}. "
        "[City|Town]: {city}.",
        "[Last|Final] call: {kind} with {name}, {seats} seats, {city}. [It is|All] about {topic}, and [it is|it happens] on {date}.",
        "{city}, {date}. [A|One] {kind} for {seats}. {name} [knows|shows] [all|everything] about {topic}.",
    ),
    frozenset({"number", "name", "city", "date", "company", "product", "quantity"}): (
        "[Hello|Dear] {name}, [your|the] parcel {number} [contains|has] {quantity} {product}. {company} [collected|got] it in {city} "
        "on {date}.",
        "{company} [reports|writes]: parcel {number}, {quantity} {product}, [left|departed] {city} {date}, [recipient|customer] {name}.",
        "[Parcel|Package] {number} [is for|belongs to] {name}. [Inside|In it] you find {quantity} {product}. [Shipped|Posted] {date}, "
        "{city}, by {company}.",
        "{name} [ordered|bought] {quantity} {product}. [On|Since] {date} they [travel|ride] with {company} [from|out of] {city} as "
        "parcel {number}.",
        "[Where|So where] is parcel {number}? {company} [loaded|scanned] it in {city} on {date}. {name} [needs|expects] [the|those] "
        "{quantity} {product}.",
        "[A|The] [van|truck] of {company} [drove|went] off in {city} on {date} with parcel {number}: {quantity} {product}, [meant|"
        "intended] for {name}.",
        "{quantity} {product} [sit|wait|lie] in parcel {number}. [Sender's town|Origin]: {city}. [Day|Date]: {date}. [Courier|Service]: "
        "{company}. [To|Addressee]: {name}.",
        "[It was|That was] {date} when {city} [saw|sent] parcel {number} [off|away]. {company} [will bring|brings] {name} {quantity} "
        "{product}.",
        "[Delivery|Shipping] note {number}: {quantity} {product}, from {city}, {date}. [Bring|Hand] to {name}. [Transport|Freight] "
        "{company}.",
        "[Yes|Indeed], {company} [has|holds] your parcel. {name}, [it is|look for] {number}; [the|all] {quantity} {product} [set out|"
        "started] from {city} on {date}.",
        "[Starting|Beginning] in {city} on {date}, {company} [moves|transports] {quantity} {product} to {name} [under|as] number "
        "{number}.",
        "{number} is the parcel that {name} [is to get|should receive]: {quantity} {product}. {company}, {city}, {date}.",
    ),
}  # fmt: skip
"""For every kind of extraction task, by its fields, texts of other words than the templates'; [a|b] is either."""


ANYTHING = (
    "think of {}", "have you heard of {}?", "remember {}!", "there is {}", "see {}", "note: {}", "speaking of {}", "then {}",
    "it is {} again", "and of course {}", "I mean {}", "what about {}?", "{} it is", "{} again", "consider {}", "{}, yes",
    "why {}?", "that would be {}", "they said {}", "I wrote down {}", "as always {}", "this time {}", "nothing but {}",
    "I only say {}", "it was {}, I think", "you know {}", "she mentioned {}", "please do not forget {}", "well, {}",
    "look: {}", "{}, what else?", "here we have {}", "somebody told me {}", "is it {}?", "so {}", "we chose {}", "no doubt {}",
    "did I say {}?", "the answer is {}", "of all things {}", "{} was the word", "let us say {}", "keep {} in mind",
)  # fmt: skip
"""Ways to say a fact, any fact, that do not tell which it is."""
