"""Words that are mostly names of people or towns, and words that look like names and are none. Capitals do not matter.

What: the commonest given and family names of several languages of origin, the larger towns of the English-speaking
countries, and the stop lists that keep diseases, months and job titles from being taken for people. Why here and not a
package: the lists must be readable, and a name that is not in them is still found where the text says that it is one
(text/clinical.py). Source: common knowledge of the field, in the order in which census tables list them.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> frozenset[str]:
    return frozenset(one.strip() for line in text.split("\n") for one in line.split(";") if one.strip())


GIVEN = _words("""
james mary robert patricia john jennifer michael linda david elizabeth william barbara richard susan joseph jessica
thomas sarah christopher karen charles lisa daniel nancy matthew betty anthony sandra donald margaret mark ashley paul
kimberly steven emily andrew donna kenneth michelle joshua carol kevin amanda brian melissa george deborah timothy
stephanie ronald rebecca jason laura edward sharon jeffrey cynthia ryan kathleen jacob amy gary angela nicholas
shirley eric anna jonathan brenda stephen pamela larry emma justin nicole scott helen brandon samantha benjamin
katherine samuel christine gregory debra alexander rachel patrick carolyn frank janet raymond maria jack catherine
dennis heather jerry diane tyler olivia aaron julie jose joyce adam victoria nathan ruth henry virginia zachary lauren
douglas kelly peter christina kyle joan noah evelyn ethan judith jeremy megan walter andrea christian cheryl keith
hannah roger jacqueline terry martha austin gloria sean teresa gerald ann carl sara harold madison dylan frances
arthur kathryn lawrence janice jordan jean jesse abigail bryan alice billy julia bruce judy gabriel sophia joe logan
denise alan doris juan marilyn albert wayne beverly amber elijah danielle willie theresa randy brittany vincent mason
tiffany roy natalie ralph rose bobby russell diana philip annie louis lori eugene kayla harry lucas alexis howard fred
marie johnny grace leonard fiona oliver harriet graham alistair nigel colin ian gareth siobhan niamh sinead liam
connor declan aoife ewan callum rhys isla poppy freya imogen pippa clive trevor simon martin derek gavin stuart neil
geoffrey ollie lewis archie hugh carlos luis miguel jorge pedro manuel francisco antonio alejandro ricardo fernando
eduardo javier rafael roberto sergio carmen rosa ana isabel lucia elena sofia valentina camila gabriela mariana
guadalupe esperanza consuelo pilar dolores mohammed muhammad ahmed ali omar hassan hussein ibrahim yusuf khalid abdul
fatima aisha khadija zainab layla noor amina wei ming li xin yan jing hui min chen jun lei fang mei ling hiroshi yuki
takashi kenji akira sakura haruto yui priya ravi anil sunil rajesh amit sanjay vijay deepa anita neha pooja arjun
rohan kavita lakshmi venkat suresh ramesh kwame kofi ama chidi ngozi chinedu adaeze oluwaseun folake amara tunde emeka
ifeoma abena thabo sipho nomsa giovanni marco luca giulia francesca paolo lorenzo chiara matteo alessandro hans klaus
jurgen heike ingrid sven lars bjorn astrid erik greta wolfgang dieter ursula helga franz pierre jacques francois
claude sophie camille amelie chloe antoine thierry nathalie vladimir ivan dmitri sergei natasha olga svetlana igor
boris tatiana nikolai katarzyna piotr agnieszka krzysztof zofia andrzej malgorzata joao paulo thiago beatriz leticia
rodrigo minh linh thuy hoang duc huong jin soo hyun ji eun kyung seung abraham isaac moses leah esther miriam naomi
eli levi caleb ezra tamika latoya keisha darnell jamal tyrone deshawn malik shanice ebony lakisha aliyah jayden aiden
zoe mia ava ella lily chase hunter owen wyatt luke gavin cole max leo felix oscar hugo theo finn nora clara stella
hazel violet ivy elsie mabel agnes edith ethel gertrude mildred dorothy irene florence norma phyllis lois marjorie
thelma lucille gladys bernice hattie wilma stanley norman ernest clarence herbert elmer lester floyd leroy clyde
chester milton sidney bernard theodore lloyd
""")

FAMILY = _words("""
smith johnson williams brown jones garcia miller davis rodriguez martinez hernandez lopez gonzalez wilson anderson
thomas taylor moore jackson martin lee perez thompson white harris sanchez clark ramirez lewis robinson walker young
allen king wright scott torres nguyen hill flores green adams nelson baker hall rivera campbell mitchell carter
roberts gomez phillips evans turner diaz parker cruz edwards collins reyes stewart morris morales murphy cook rogers
gutierrez ortiz morgan cooper peterson bailey reed kelly howard ramos kim cox ward richardson watson brooks chavez
wood james bennett gray mendoza ruiz hughes price alvarez castillo sanders patel myers long ross foster jimenez powell
jenkins perry russell sullivan bell coleman butler henderson barnes gonzales fisher vasquez simmons romero jordan
patterson alexander hamilton graham reynolds griffin wallace moreno west cole hayes bryant herrera gibson ellis tran
medina aguilar stevens murray ford castro marshall owens harrison fernandez mcdonald woods washington kennedy wells
vargas henry chen freeman webb tucker guzman burns crawford olson simpson porter hunter gordon mendez silva shaw
snyder mason dixon munoz hunt hicks holmes palmer wagner black robertson boyd stone salazar fox warren mills meyer
rice schmidt garza daniels ferguson nichols stephens soto weaver ryan gardner payne grant dunn kelley spencer hawkins
arnold pierce hansen peters santos hart bradley knight elliott cunningham duncan armstrong hudson carroll lane riley
andrews alvarado ray delgado berry perkins hoffman johnston matthews pena richards contreras willis carpenter lawrence
sandoval guerrero george chapman rios estrada ortega watkins greene nunez wheeler valdez harper burke larson santiago
maldonado morrison franklin carlson austin dominguez carr lawson jacobs obrien lynch singh vega bishop montgomery
oliver jensen harvey williamson gilbert dean sims espinoza howell li wong reid hanson le mccoy garrett burton fuller
wang weber welch rojas lucas marquez fields park yang little banks padilla day walsh bowman schultz luna fowler mejia
davidson acosta brewer may holland juarez newman pearson curtis cortez douglas schneider joseph barrett navarro
figueroa keller avila wade molina stanley hopkins campos barnett bates chambers caldwell beck lambert miranda byrd
craig ayala lowe frazier powers neal leonard gregory carrillo sutton fleming rhodes shelton schwartz norris jennings
rios watts duran walters cohen mcdaniel moran parks steele vaughn becker holt deleon barker terry hale leon hail
benson haynes horton miles lyons pham graves bush thornton wolfe warner cabrera mckinney mann zimmerman dawson lara
fletcher page mccarthy love robles cervantes solis erickson reeves chang klein salinas fuentes baldwin daniel simon
velasquez hardy higgins aguirre lin cummings chandler sharp barber bowen ochoa dennis robbins liu ramsey francis
griffith paul blair oconnor cardenas pacheco cross calderon quinn moss swanson chan rivas khan rodgers serrano
fitzgerald rosales stevenson christensen manning gill curry mclaughlin harmon mcgee gross doyle garner newton burgess
reese walton blake trujillo adkins brady goodman roman webster goodwin fischer huang potter delacruz montoya todd wu
hines mullins castaneda malone cannon tate mack sherman hubbard hodges zhang guerra wolf valencia saunders franco rowe
gallagher farmer hammond hampton townsend ingram wise gupta sharma kumar reddy rao iyer shah mehta desai kapoor okafor
okonkwo adeyemi mensah owusu diallo traore mbeki nkosi rossi russo ferrari esposito bianchi romano mueller muller
schneider becker hoffmann koch bauer richter dubois lefebvre moreau laurent girard dupont fontaine ivanov petrov
sokolov volkov kowalski nowak wisniewski zielinski novak horvat tanaka suzuki sato watanabe yamamoto nakamura
kobayashi takahashi ito haddad mansour nasser farah saleh rahman hussain ahmed macdonald mackenzie mcgregor sinclair
pritchard davies llewellyn oneill obrien osullivan whitfield ashworth
""")

TOWNS = _phrases("""
new york; los angeles; chicago; houston; phoenix; philadelphia; san antonio; san diego; dallas; san jose; austin
jacksonville; fort worth; columbus; charlotte; indianapolis; san francisco; seattle; denver; nashville; oklahoma city
boston; el paso; portland; las vegas; memphis; detroit; baltimore; milwaukee; albuquerque; tucson; fresno; sacramento
kansas city; mesa; atlanta; omaha; colorado springs; raleigh; long beach; miami; oakland; minneapolis; tulsa; tampa
wichita; arlington; new orleans; cleveland; honolulu; anaheim; lexington; stockton; corpus christi; irvine; cincinnati
orlando; pittsburgh; st. louis; st louis; st. paul; greensboro; anchorage; plano; lincoln; durham; buffalo; toledo
chandler; st. petersburg; laredo; reno; madison; lubbock; scottsdale; boise; baton rouge; richmond; spokane; des moines
tacoma; rochester; salt lake city; fayetteville; birmingham; montgomery; little rock; akron; augusta; grand rapids
shreveport; huntsville; mobile; knoxville; worcester; brooklyn; queens; the bronx; manhattan; staten island; providence
syracuse; dayton; savannah; hartford; springfield; bakersfield; riverside; santa ana; newark; jersey city; chesapeake
london; manchester; liverpool; leeds; sheffield; bristol; glasgow; edinburgh; cardiff; belfast; newcastle; nottingham
leicester; coventry; southampton; portsmouth; brighton; oxford; cambridge; york; aberdeen; dundee; swansea; norwich
toronto; montreal; vancouver; calgary; ottawa; edmonton; winnipeg; halifax; sydney; melbourne; brisbane; perth; adelaide
dublin; cork; galway; limerick; auckland; wellington; christchurch
""")

MONTHS = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
          "december")  # fmt: skip
STATES = _phrases("""
alabama; alaska; arizona; arkansas; california; colorado; connecticut; delaware; florida; georgia; hawaii; idaho
illinois; indiana; iowa; kansas; kentucky; louisiana; maine; maryland; massachusetts; michigan; minnesota; mississippi
missouri; montana; nebraska; nevada; new hampshire; new jersey; new mexico; north carolina; north dakota; ohio; oklahoma
oregon; pennsylvania; rhode island; south carolina; south dakota; tennessee; texas; utah; vermont; virginia; washington
west virginia; wisconsin; wyoming; england; scotland; wales; ireland; canada; mexico; australia; america; india; china
germany; france; spain; italy; poland; japan; vietnam; korea; nigeria; ghana; kenya; brazil; europe; africa; asia
""")
STATE_CODES = _words("""
AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY NC ND OH OK OR PA RI
SC SD TN TX UT VT VA WA WV WI WY DC
""")

AMBIGUOUS = _words("""
will mark may grace hope faith rose art bill frank grant drew chase hunter joy dawn june april august summer autumn
sue pat rob nick max ray dean lance miles gene jack carol ivy lily violet hazel amber mason young white black brown
green gray king hill woods wood long west cross stone rice page price day park parks fields little banks bush love
sharp wise cook baker fisher hunt bell ward moss field power powers reed snow winter may li le min jun hall lane
carpenter farmer butler potter cannon gross mann page cole ford fox wolf knight bishop holland england paris jordan
virginia carolina georgia austin madison brooklyn chelsea logan jean terry jin ama wei ji eli christian guy mercy ana
ann leo lei soo can ming hui jing fang dolores pilar rosa rio
""")
"""Names that are as often other words: alone they are no name, beside another name they are."""

NOT_NAMES = _words("""
the a an and or but if in on at to of for from with by as is was are were be been has have had he she it they we you i
his her their our your my this that these those there here who what when where why how not no yes please thank thanks
patient pt doctor dr nurse mother father son daughter wife husband brother sister family history physical exam plan
assessment chief complaint diagnosis medications allergies labs vitals note notes discharge admission summary follow
report review date time today yesterday tomorrow monday tuesday wednesday thursday friday saturday sunday emergency
department hospital clinic medical center service unit room floor ward surgery medicine cardiology neurology oncology
radiology pathology pediatrics psychiatry urology orthopedics internal general intensive care icu er ed or ct mri ecg
ekg eeg bp hr rr temp mg ml iv po prn bid tid qid qd daily aspirin metformin lisinopril insulin warfarin heparin name
number phone address email record account insurance policy member id mrn dob ssn age sex male female unknown none new
old left right acute chronic severe mild moderate stable normal abnormal positive negative stage type grade class
street avenue road drive lane court place boulevard apartment suite county state city north south east west american
english spanish french german chinese indian african european asian hispanic caucasian christian jewish muslim after
before during since until while upon per via about all any both each other some such only own same so than too
attending physician surgeon provider resident referring consultant specialist therapist pharmacist technician social
worker case manager primary office team staff dear hello hi regards sincerely re cc subject call contact see seen
reports denies states notes presents presented lives admitted discharged transferred scheduled
""")

EPONYMS = ("disease", "syndrome", "sign", "catheter", "scale", "score", "palsy", "test", "lymphoma", "maneuver",
           "manoeuvre", "procedure", "criteria", "fracture", "contracture", "phenomenon", "thyroiditis", "esophagus",
           "tumor", "tumour", "sarcoma", "dementia", "chorea", "reflex", "classification", "index", "ulcer", "nodes",
           "rule", "law", "theorem", "coma", "monitor", "stain", "cells", "bodies", "triad", "position", "splint",
           "virus", "anemia", "purpura", "drain", "tube", "clamp", "retractor", "method", "stage",
           "nephropathy")  # fmt: skip
"""What follows a person's name that stands for an illness or a tool: Bell's palsy is nobody."""
